// Text streams: the time of an id is bounded, since only the latest ids can change how the next ids are decoded.
#include "text_stream.h"

#include <algorithm>
#include <tuple>
#include <utility>

#include "error.h"
#include "utf8.h"

namespace molkv {

namespace {

constexpr std::string_view incomplete = "\xEF\xBF\xBD";  // decoders return U+FFFD for bytes that are no character
constexpr std::size_t recent_tokens = 8;  // more than the 4 bytes of a character, each of which can be one token
constexpr std::size_t most_strings = 16;
constexpr std::size_t longest_string = 1'000;

// Return the latest ids, such that more ids change the decoded text of all ids and of these ids in the same way: a run
// of byte tokens as a whole, and some tokens before the first token that can still change.
std::span<const std::int32_t> recent(const Tokenizer& tokenizer, std::span<const std::int32_t> ids) {
    std::size_t count = 0;
    for (std::size_t start = ids.size(); start > 0; start--) {
        const std::int32_t id = ids[start - 1];
        if (!tokenizer.has_text(id)) continue;
        count++;
        if (count >= recent_tokens && !tokenizer.is_byte(id)) return ids.subspan(start - 1);
    }
    return ids;
}

std::vector<std::int32_t> copy(std::span<const std::int32_t> ids) {
    return {ids.begin(), ids.end()};
}

std::size_t count_characters(std::string_view text) {
    return static_cast<std::size_t>(std::count_if(
        text.begin(), text.end(), [](char byte) { return (static_cast<unsigned char>(byte) & 0xC0U) != 0x80U; }));
}

}  // namespace

TextStream::TextStream(const Tokenizer& tokenizer, std::span<const std::int32_t> prompt)
    : tokenizer_(tokenizer), context_(copy(recent(tokenizer, prompt))), context_text_(tokenizer.decode(context_)) {}

std::string_view TextStream::push(std::int32_t id) {
    piece_.clear();
    if (!tokenizer_.has(id) || tokenizer_.is_special(id)) return piece_;
    held_.push_back(id);
    if (tokenizer_.is_byte(id)) return piece_;
    const auto end = recent(tokenizer_, held_);
    const bool is_long = end.size() < held_.size();
    if (is_long && tokenizer_.decode(end).ends_with(incomplete)) return piece_;
    std::string held = held_text();
    return held.ends_with(incomplete) ? piece_ : release(std::move(held));
}

std::string_view TextStream::finish() {
    piece_.clear();
    return held_.empty() ? piece_ : release(held_text());
}

std::string TextStream::held_text() const {
    std::vector<std::int32_t> ids = context_;
    ids.insert(ids.end(), held_.begin(), held_.end());
    std::string text = tokenizer_.decode(ids);
    if (!text.starts_with(context_text_)) return tokenizer_.decode(held_);
    text.erase(0, context_text_.size());
    return text;
}

std::string_view TextStream::release(std::string held) {
    // Held ids without a text of their own, such as a space at the start of a text, are no context for later ids.
    if (tokenizer_.decode(held_).empty()) {
        context_.insert(context_.end(), held_.begin(), held_.end());
    } else {
        context_ = std::move(held_);
    }
    context_ = copy(recent(tokenizer_, context_));
    context_text_ = tokenizer_.decode(context_);
    held_.clear();
    piece_ = std::move(held);
    return piece_;
}

StopStrings::StopStrings(std::vector<std::string> strings) : strings_(std::move(strings)) {
    if (strings_.size() > most_strings) {
        fail(Kind::request, "stop: found ", strings_.size(), " strings, expected at most ", most_strings);
    }
    for (const std::string& string : strings_) {
        if (!is_utf8(string)) fail(Kind::request, "stop: found a string that is not UTF-8, expected UTF-8");
        const std::size_t characters = count_characters(string);
        if (characters == 0 || characters > longest_string) {
            fail(Kind::request, "stop: found a string of ", characters, " characters, expected 1 to ", longest_string,
                 " characters");
        }
    }
}

std::string StopStrings::push(std::string_view piece) {
    if (found_) return {};
    if (strings_.empty()) return std::string(piece);
    held_ += piece;
    std::size_t first_end = std::string::npos;
    std::size_t start = 0;
    for (const std::string& string : strings_) {
        const std::size_t place = held_.find(string);
        if (place == std::string::npos) continue;
        const std::size_t end = place + string.size();
        if (std::tie(end, place) >= std::tie(first_end, start) && found_) continue;
        std::tie(first_end, start, found_) = std::tuple(end, place, true);
    }
    if (found_) {
        held_.resize(start);
        return finish();
    }
    std::size_t held = 0;  // the longest end of the text that is the beginning of a stop string
    for (const std::string& string : strings_) held = std::max(held, overlap(string));
    std::string sent = held_.substr(0, held_.size() - held);
    held_.erase(0, sent.size());
    return sent;
}

std::size_t StopStrings::overlap(std::string_view string) const {
    const std::string_view text = held_;
    for (std::size_t size = std::min(text.size(), string.size() - 1); size > 0; size--) {
        if (text.ends_with(string.substr(0, size))) return size;
    }
    return 0;
}

std::string StopStrings::finish() {
    return std::exchange(held_, {});
}

}  // namespace molkv
