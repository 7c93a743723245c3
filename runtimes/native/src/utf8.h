// UTF-8: checks, and conversion from and to code points.
#pragma once

#include <cstddef>
#include <string>
#include <string_view>

namespace molkv {

// Whether bytes are valid UTF-8: no surrogates, no overlong forms, nothing above U+10FFFF.
bool is_utf8(std::string_view bytes);

// Append the UTF-8 of a code point.
void append_utf8(std::string& out, char32_t code);

// One decoded character: its code point and its number of bytes. For bytes that are not valid UTF-8: U+FFFD, and the
// number of bytes that one U+FFFD replaces (the maximal subpart, Unicode chapter 3, "U+FFFD Substitution"; Rust's
// String::from_utf8_lossy does the same).
struct Character {
    char32_t code;
    std::size_t size;
    bool valid;
};

// Decode the first character of `bytes`, which must not be empty.
Character first_character(std::string_view bytes);

}  // namespace molkv
