// Character classes and NFC, of the versions of Unicode that Hugging Face's tokenizers library uses.
#pragma once

#include <string>
#include <string_view>

namespace molkv {

bool is_letter(char32_t code);  // \p{L}
bool is_number(char32_t code);  // \p{N}
bool is_space(char32_t code);   // \s, the property White_Space
// Whether \w matches: letters, marks, digits, connector punctuation and joiners.
bool is_word_character(char32_t code);

// Return valid UTF-8 in Unicode Normalization Form C.
std::string nfc(std::string_view text);

}  // namespace molkv
