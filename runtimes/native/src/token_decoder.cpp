// The decoders.
#include "token_decoder.h"

#include <algorithm>
#include <array>

#include "byte_level.h"
#include "json_fields.h"
#include "utf8.h"

namespace molkv {

namespace {

constexpr std::string_view replacement_character = "\xEF\xBF\xBD";

std::string decode_byte_level(const std::vector<std::string_view>& tokens) {
    std::string bytes;
    for (const std::string_view token : tokens) append_bytes_of_characters(bytes, token);
    if (is_utf8(bytes)) return bytes;
    std::string found;
    for (std::string_view rest = bytes; !rest.empty();) {
        const Character character = first_character(rest);
        append_utf8(found, character.code);
        rest.remove_prefix(character.size);
    }
    return found;
}

std::string decode_metaspace(const std::vector<std::string_view>& tokens, const Metaspace& metaspace) {
    std::string found;
    bool is_first = metaspace.scheme != PrependScheme::never;
    for (const std::string_view token : tokens) {
        found += replace_all(token, metaspace.replacement, is_first ? "" : " ");
        is_first = false;
    }
    return found;
}

int digit_value(char digit) {
    if (digit >= '0' && digit <= '9') return digit - '0';
    if (digit >= 'a' && digit <= 'f') return digit - 'a' + 10;
    if (digit >= 'A' && digit <= 'F') return digit - 'A' + 10;
    return -1;
}

}  // namespace

std::optional<char> byte_of_token(std::string_view token) {
    if (token.size() != 6 || !token.starts_with("<0x") || token.back() != '>') return std::nullopt;
    const int high = digit_value(token[3]);
    const int low = digit_value(token[4]);
    if (high < 0 || low < 0) return std::nullopt;
    return static_cast<char>(high * 16 + low);
}

TokenDecoder::TokenDecoder(const std::optional<JsonValue>& field, const JsonValue& root) {
    if (!field) root.refuse("no field \"decoder\"", "one");
    const std::string_view type =
        expect_type(*field, {"ByteLevel", "Metaspace", "Sequence", "Replace", "ByteFallback", "Fuse"});
    if (type == "ByteLevel") {
        is_byte_level_ = true;
    } else if (type == "Metaspace") {
        metaspace_ = Metaspace(*field);
    } else {
        read_sequence(*field);
    }
}

// The four steps must be in the order in which they work as one: replacements in tokens, then bytes, then the text.
void TokenDecoder::read_sequence(const JsonValue& sequence) {
    constexpr std::string_view order = "an earlier place: the order is Replace, ByteFallback, Fuse, Strip";
    constexpr std::array<std::string_view, 4> names = {"Replace", "ByteFallback", "Fuse", "Strip"};
    std::size_t latest = 0;
    bool is_fused = false;
    Growth growth;
    for (const JsonValue& part : parts_of_sequence(sequence, "decoders")) {
        const std::string_view type = expect_type(part, {"Replace", "ByteFallback", "Fuse", "Strip"});
        const auto place = static_cast<std::size_t>(std::find(names.begin(), names.end(), type) - names.begin());
        if (place < latest) part.refuse(text("\"", type, "\" after \"", names[latest], "\""), order);
        latest = place;
        if (type == "Replace") {
            const Replacement& replacement = replacements_.emplace_back(part);
            growth.add(part, replacement.from.size(), replacement.to.size());
        } else if (type == "ByteFallback") {
            byte_fallback_ = true;
        } else if (type == "Fuse") {
            is_fused = true;
        } else {
            if (!is_fused) part.refuse("\"Strip\"", "\"Fuse\" before it");
            static_cast<void>(part["start"].integer(1, 1));
            static_cast<void>(part["stop"].integer(0, 0));
            if (!stripped_.empty()) part.refuse("\"Strip\" a second time", "it once");
            stripped_ = part["content"].string();
            if (stripped_.empty() || first_character(stripped_).size != stripped_.size()) {
                part["content"].refuse(text("\"", stripped_, "\""), "one character");
            }
        }
    }
}

std::string TokenDecoder::decode(const std::vector<std::string_view>& tokens) const {
    if (is_byte_level_) return decode_byte_level(tokens);
    if (metaspace_) return decode_metaspace(tokens, *metaspace_);
    return decode_sequence(tokens);
}

std::string TokenDecoder::decode_sequence(const std::vector<std::string_view>& tokens) const {
    std::string found;
    std::string run;  // bytes of byte tokens
    const auto end_run = [&] {
        if (is_utf8(run)) {
            found += run;
        } else {
            for (std::size_t byte = 0; byte < run.size(); byte++) found += replacement_character;
        }
        run.clear();
    };
    for (const std::string_view token : tokens) {
        std::string piece(token);
        for (const auto& [from, to] : replacements_) piece = replace_all(piece, from, to);
        const std::optional<char> byte = byte_fallback_ ? byte_of_token(piece) : std::nullopt;
        if (byte) {
            run += *byte;
        } else {
            end_run();
            found += piece;
        }
    }
    end_run();
    if (!stripped_.empty() && found.starts_with(stripped_)) found.erase(0, stripped_.size());
    return found;
}

}  // namespace molkv
