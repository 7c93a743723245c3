// The characters that byte-level BPE uses for bytes: each byte has one printable character (GPT-2).
#pragma once

#include <string>
#include <string_view>

namespace molkv {

// Return the UTF-8 of one character for each byte.
std::string characters_of_bytes(std::string_view bytes);

// Append the bytes of a token. If one of its characters stands for no byte, append the UTF-8 of the token itself.
void append_bytes_of_characters(std::string& bytes, std::string_view token);

}  // namespace molkv
