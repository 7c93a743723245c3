// The regular expressions that split a text into words before byte-level BPE, without a regular-expression engine.
#pragma once

#include <optional>
#include <string_view>
#include <vector>

namespace molkv {

// The published regular expressions of model families.
enum class WordPattern { gpt2, llama3, qwen2 };

// Return the pattern with exactly this regular expression, or nothing.
std::optional<WordPattern> find_word_pattern(std::string_view expression);

// Return the matches of a pattern in a text, which must be UTF-8. Together they are the whole text.
std::vector<std::string_view> match_words(WordPattern pattern, std::string_view text);

}  // namespace molkv
