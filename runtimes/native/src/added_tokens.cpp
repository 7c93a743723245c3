// Added tokens: the rules of their ids and of the search are those of Hugging Face's tokenizers library.
#include "added_tokens.h"

#include <algorithm>
#include <limits>
#include <unordered_set>

#include "unicode.h"
#include "utf8.h"

namespace molkv {

namespace {

constexpr std::size_t longest_content = 1'000;  // bytes; it limits the time of a search

unsigned char byte_at(std::string_view text, std::size_t place) {
    return static_cast<unsigned char>(text[place]);
}

// Return where the last character of a text begins.
std::size_t last_character(std::string_view text) {
    std::size_t start = text.size() - 1;
    while (start > 0 && (byte_at(text, start) & 0xC0U) == 0x80U) start--;
    return start;
}

bool ends_with_word(std::string_view text) {
    return !text.empty() && is_word_character(first_character(text.substr(last_character(text))).code);
}

bool starts_with_word(std::string_view text) {
    return !text.empty() && is_word_character(first_character(text).code);
}

// Return where the white space at the end of a text begins.
std::size_t without_space_at_end(std::string_view text) {
    while (!text.empty()) {
        const std::size_t start = last_character(text);
        if (!is_space(first_character(text.substr(start)).code)) break;
        text.remove_suffix(text.size() - start);
    }
    return text.size();
}

// Return the number of bytes of white space at the start of a text.
std::size_t space_at_start(std::string_view text) {
    std::size_t size = 0;
    while (size < text.size()) {
        const Character character = first_character(text.substr(size));
        if (!is_space(character.code)) break;
        size += character.size;
    }
    return size;
}

AddedToken read_token(const JsonValue& item, const Normalizer& normalizer) {
    const JsonValue content = item["content"];
    if (content.string().size() > longest_content) {
        content.refuse(text("a text of ", content.string().size(), " bytes"), text("at most ", longest_content));
    }
    AddedToken token{};
    token.content = content.string();
    token.special = item["special"].boolean();
    token.single_word = item["single_word"].boolean();
    token.lstrip = item["lstrip"].boolean();
    token.rstrip = item["rstrip"].boolean();
    token.normalized = item["normalized"].boolean();
    token.text = token.normalized ? normalizer.normalize(token.content) : token.content;
    return token;
}

// Hide each token whose text is the content of a special token. So the library shows a special token whose content is
// changed by the normalizer.
void hide_special_tokens(std::vector<AddedToken>& tokens) {
    std::unordered_set<std::string_view> hidden;
    for (const AddedToken& token : tokens) {
        if (token.special) hidden.insert(token.content);
    }
    for (AddedToken& token : tokens) token.hidden = hidden.contains(token.text);
}

std::vector<AddedToken> read_tokens(const std::optional<JsonValue>& list, const Vocabulary& vocabulary,
                                    const Normalizer& normalizer) {
    std::vector<AddedToken> tokens;
    if (!list) return tokens;
    if (list->type() != JsonValue::Type::array) list->refuse("no list", "a list of tokens");
    constexpr std::int64_t most = std::numeric_limits<std::int32_t>::max();
    std::unordered_set<std::string_view> contents;
    auto next = static_cast<std::int64_t>(vocabulary.size());
    for (const JsonValue& item : list->items()) {
        AddedToken token = read_token(item, normalizer);
        if (token.content.empty()) continue;
        if (!contents.insert(item["content"].string()).second) {
            item.refuse(text("\"", token.content, "\" a second time"), "each content once");
        }
        const auto place = vocabulary.place(token.content);
        const std::int64_t id = place ? vocabulary.id(*place) : next;
        if (id > most) item.refuse(text("the id ", id), text("at most ", most));
        next = std::max(next, id + 1);
        token.id = static_cast<std::int32_t>(id);
        tokens.push_back(std::move(token));
    }
    hide_special_tokens(tokens);
    return tokens;
}

}  // namespace

TokenSearch::TokenSearch(std::vector<Pattern> patterns) : patterns_(std::move(patterns)) {
    const auto by_text = [](const Pattern& a, const Pattern& b) { return a.text < b.text; };
    const auto same_text = [](const Pattern& a, const Pattern& b) { return a.text == b.text; };
    std::stable_sort(patterns_.begin(), patterns_.end(), by_text);
    patterns_.erase(std::unique(patterns_.begin(), patterns_.end(), same_text), patterns_.end());
    for (const Pattern& pattern : patterns_) is_first_[byte_at(pattern.text, 0)] = true;
}

// Return the longest pattern at the start of a text, or null. The range of patterns with the same start becomes
// smaller with each byte.
const TokenSearch::Pattern* TokenSearch::longest(std::string_view text) const {
    if (!is_first_[byte_at(text, 0)]) return nullptr;
    const Pattern* found = nullptr;
    auto first = patterns_.begin();
    auto last = patterns_.end();
    for (std::size_t size = 0; first != last; size++) {
        if (first->text.size() == size) found = &*first++;
        if (size == text.size()) break;
        const unsigned char byte = byte_at(text, size);
        first = std::lower_bound(first, last, byte, [size](const Pattern& pattern, unsigned char value) {
            return byte_at(pattern.text, size) < value;
        });
        last = std::upper_bound(first, last, byte, [size](unsigned char value, const Pattern& pattern) {
            return value < byte_at(pattern.text, size);
        });
    }
    return found;
}

std::vector<TextPart> TokenSearch::split(std::string_view text) const {
    std::vector<TextPart> parts;
    std::size_t done = 0;
    const auto add = [&](std::size_t start, std::size_t end, const AddedToken* token) {
        if (start < end) parts.push_back({text.substr(start, end - start), token});
    };
    for (std::size_t at = 0; at < text.size();) {
        const Pattern* pattern = longest(text.substr(at));
        if (pattern == nullptr) {
            at++;
            continue;
        }
        std::size_t start = at;
        std::size_t end = at + pattern->text.size();
        at = end;
        const AddedToken& token = *pattern->token;
        if (token.single_word && (ends_with_word(text.substr(0, start)) || starts_with_word(text.substr(end))))
            continue;
        // The text before `done` belongs to earlier tokens. Without these limits, the time for white space is
        // quadratic.
        if (token.lstrip) start = start > done ? done + without_space_at_end(text.substr(done, start - done)) : done;
        if (token.rstrip) end = end < done ? done : end + space_at_start(text.substr(end));
        if (start > end) {  // the library cannot encode such a text either
            fail(Kind::bundle, "tokenizer.json: added_tokens: found \"", token.content,
                 "\" in white space that belongs to ", "the token before it, expected no token with lstrip there");
        }
        add(done, start, nullptr);  // NOLINT(readability-suspicious-call-argument): a start and an end
        add(start, end, &token);
        done = end;
    }
    add(done, text.size(), nullptr);
    return parts;
}

AddedTokens::AddedTokens(const std::optional<JsonValue>& list, const Vocabulary& vocabulary,
                         const Normalizer& normalizer)
    : tokens_(read_tokens(list, vocabulary, normalizer)), raw_(patterns(false)), normalized_(patterns(true)) {
    by_id_.reserve(tokens_.size());
    for (const AddedToken& token : tokens_) by_id_.push_back(&token);
    std::sort(by_id_.begin(), by_id_.end(), [](const AddedToken* a, const AddedToken* b) { return a->id < b->id; });
}

const AddedToken* AddedTokens::find(std::int32_t id) const {
    const auto found = std::lower_bound(by_id_.begin(), by_id_.end(), id,
                                        [](const AddedToken* token, std::int32_t value) { return token->id < value; });
    return found != by_id_.end() && (*found)->id == id ? *found : nullptr;
}

// Return the texts to search, special tokens first.
std::vector<TokenSearch::Pattern> AddedTokens::patterns(bool is_normalized) const {
    std::vector<TokenSearch::Pattern> found;
    for (const bool special : {true, false}) {
        for (const AddedToken& token : tokens_) {
            if (token.special != special || token.normalized != is_normalized) continue;
            found.push_back({token.text, &token});
        }
    }
    return found;
}

}  // namespace molkv
