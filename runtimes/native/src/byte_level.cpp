// Printable Latin-1 characters stand for themselves; the other bytes, in ascending order, have U+0100, U+0101, ...
#include "byte_level.h"

#include <array>
#include <cstddef>
#include <cstdint>

#include "utf8.h"

namespace molkv {

namespace {

constexpr std::size_t byte_count = 256;
constexpr char32_t first_substitute = 0x100;
constexpr std::int16_t no_byte = -1;

constexpr bool stands_for_itself(std::size_t byte) {
    return (byte >= '!' && byte <= '~') || (byte >= 0xA1 && byte <= 0xAC) || byte >= 0xAE;
}

constexpr std::array<char32_t, byte_count> make_characters() {
    std::array<char32_t, byte_count> characters{};
    char32_t substitute = first_substitute;
    for (std::size_t byte = 0; byte < byte_count; byte++) {
        characters[byte] = stands_for_itself(byte) ? static_cast<char32_t>(byte) : substitute++;
    }
    return characters;
}

constexpr std::array<char32_t, byte_count> characters = make_characters();
constexpr std::size_t code_count = 0x144;  // the last substitute is U+0143

constexpr std::array<std::int16_t, code_count> make_bytes() {
    std::array<std::int16_t, code_count> bytes{};
    for (auto& byte : bytes) byte = no_byte;
    for (std::size_t byte = 0; byte < byte_count; byte++) bytes[characters[byte]] = static_cast<std::int16_t>(byte);
    return bytes;
}

constexpr std::array<std::int16_t, code_count> bytes_of_codes = make_bytes();

}  // namespace

std::string characters_of_bytes(std::string_view bytes) {
    std::string found;
    found.reserve(bytes.size() * 2);
    for (const char byte : bytes) append_utf8(found, characters[static_cast<unsigned char>(byte)]);
    return found;
}

void append_bytes_of_characters(std::string& bytes, std::string_view token) {
    const std::size_t start = bytes.size();
    for (std::string_view rest = token; !rest.empty();) {
        const Character character = first_character(rest);
        const std::int16_t byte = character.code < code_count ? bytes_of_codes[character.code] : no_byte;
        if (byte == no_byte) {
            bytes.resize(start);
            bytes += token;
            return;
        }
        bytes += static_cast<char>(byte);
        rest.remove_prefix(character.size);
    }
}

}  // namespace molkv
