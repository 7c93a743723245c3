// Output with checks: a program such as `head` may end before this one.
#include "output.h"

#include <array>
#include <cerrno>
#include <cstdio>
#include <system_error>

#include "errors.h"

namespace tool {

namespace {

constexpr unsigned char first_printable = 0x20;
constexpr unsigned char delete_character = 0x7f;

std::string escaped(std::string_view text, const char* format, bool quotes) {
    std::string result;
    for (const char character : text) {
        const auto byte = static_cast<unsigned char>(character);
        if (byte < first_printable || byte == delete_character) {
            std::array<char, 8> code{};
            static_cast<void>(std::snprintf(code.data(), code.size(), format, static_cast<unsigned>(byte)));
            result += code.data();
            continue;
        }
        if (quotes && (character == '"' || character == '\\')) result.push_back('\\');
        result.push_back(character);
    }
    return result;
}

}  // namespace

void print(std::string_view text) {
    if (std::fwrite(text.data(), 1, text.size(), stdout) != text.size() || std::fflush(stdout) != 0) {
        if (errno == EPIPE) throw OutputClosed();
        throw ToolError("standard output: " + std::generic_category().message(errno));
    }
}

std::string json_string(std::string_view text) {
    return '"' + escaped(text, "\\u%04x", true) + '"';
}

std::string json_number(double number) {
    std::array<char, 40> digits{};
    static_cast<void>(std::snprintf(digits.data(), digits.size(), "%.9g", number));
    return digits.data();
}

std::string one_line(std::string_view text) {
    return escaped(text, "\\x%02x", false);
}

}  // namespace tool
