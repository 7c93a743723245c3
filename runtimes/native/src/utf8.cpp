#include "utf8.h"

namespace molkv {

namespace {

struct Lead {
    std::size_t size;     // bytes of the character; 0: no lead byte
    unsigned char least;  // range of the second byte
    unsigned char most;
};

// Unicode chapter 3, table 3-7, "Well-Formed UTF-8 Byte Sequences".
Lead lead(unsigned char byte) {
    if (byte < 0x80) return {1, 0, 0};
    if (byte >= 0xC2 && byte <= 0xDF) return {2, 0x80, 0xBF};
    if (byte == 0xE0) return {3, 0xA0, 0xBF};
    if (byte == 0xED) return {3, 0x80, 0x9F};
    if (byte >= 0xE1 && byte <= 0xEF) return {3, 0x80, 0xBF};
    if (byte == 0xF0) return {4, 0x90, 0xBF};
    if (byte >= 0xF1 && byte <= 0xF3) return {4, 0x80, 0xBF};
    if (byte == 0xF4) return {4, 0x80, 0x8F};
    return {0, 0, 0};
}

}  // namespace

Character first_character(std::string_view bytes) {
    constexpr char32_t replacement = 0xFFFD;
    const auto first = static_cast<unsigned char>(bytes.front());
    const Lead found = lead(first);
    if (found.size == 0) return {replacement, 1, false};
    if (found.size == 1) return {first, 1, true};
    char32_t code = first & (0xFFU >> (found.size + 1));
    for (std::size_t place = 1; place < found.size; place++) {
        const unsigned char least = place == 1 ? found.least : 0x80;
        const unsigned char most = place == 1 ? found.most : 0xBF;
        if (place >= bytes.size()) return {replacement, place, false};
        const auto byte = static_cast<unsigned char>(bytes[place]);
        if (byte < least || byte > most) return {replacement, place, false};
        code = (code << 6U) | (byte & 0x3FU);
    }
    return {code, found.size, true};
}

bool is_utf8(std::string_view bytes) {
    while (!bytes.empty()) {
        const Character character = first_character(bytes);
        if (!character.valid) return false;
        bytes.remove_prefix(character.size);
    }
    return true;
}

void append_utf8(std::string& out, char32_t code) {
    if (code < 0x80) {
        out += static_cast<char>(code);
    } else if (code < 0x800) {
        out += static_cast<char>(0xC0U | (code >> 6U));
        out += static_cast<char>(0x80U | (code & 0x3FU));
    } else if (code < 0x10000) {
        out += static_cast<char>(0xE0U | (code >> 12U));
        out += static_cast<char>(0x80U | ((code >> 6U) & 0x3FU));
        out += static_cast<char>(0x80U | (code & 0x3FU));
    } else {
        out += static_cast<char>(0xF0U | (code >> 18U));
        out += static_cast<char>(0x80U | ((code >> 12U) & 0x3FU));
        out += static_cast<char>(0x80U | ((code >> 6U) & 0x3FU));
        out += static_cast<char>(0x80U | (code & 0x3FU));
    }
}

}  // namespace molkv
