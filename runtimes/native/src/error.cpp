// The text of an error.
#include "error.h"

#include <algorithm>
#include <array>

#include "utf8.h"

namespace molkv {

namespace {

struct Range {
    char32_t first;
    char32_t last;
};

// Control characters; line and paragraph separators; and the characters that change the direction of a text, which can
// show a name as another one.
constexpr std::array<Range, 5> unprintable = {
    {{0x00, 0x1F}, {0x7F, 0x9F}, {0x200E, 0x200F}, {0x2028, 0x202E}, {0x2066, 0x2069}}};

bool is_printable(const Character& character) {
    return character.valid && std::none_of(unprintable.begin(), unprintable.end(), [&](const Range& range) {
               return character.code >= range.first && character.code <= range.last;
           });
}

void append_escaped(std::string& out, char32_t code) {
    constexpr std::string_view digits = "0123456789abcdef";
    const bool is_short = code < 0x100;
    out += is_short ? "\\x" : "\\u";
    for (int shift = is_short ? 4 : 12; shift >= 0; shift -= 4)
        out += digits[(code >> static_cast<unsigned>(shift)) & 15U];
}

}  // namespace

std::string printable(std::string_view text) {
    std::string result;
    result.reserve(text.size());
    while (!text.empty()) {
        const Character character = first_character(text);
        const std::string_view bytes = text.substr(0, character.size);
        text.remove_prefix(character.size);
        if (is_printable(character)) {
            result += bytes;
        } else if (character.valid) {
            append_escaped(result, character.code);
        } else {
            for (const char byte : bytes) append_escaped(result, static_cast<unsigned char>(byte));
        }
    }
    return result;
}

}  // namespace molkv
