// The text of a stream of tokens, and the strings that end it (docs/bundle-format.md, "Text").
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "tokenizer.h"

namespace molkv {

// Converts token ids, one at a time, to pieces of text. A piece is returned once no later id can change it. The time of
// an id does not grow with the length of the text.
class TextStream {
 public:
    TextStream(const Tokenizer& tokenizer, std::span<const std::int32_t> prompt);
    // Add an id. Return the text that it completes, often an empty text; valid until the next call.
    std::string_view push(std::int32_t id);
    // Return the text that is still held back. Call it after the last id.
    std::string_view finish();

 private:
    [[nodiscard]] std::string held_text() const;
    std::string_view release(std::string held);

    const Tokenizer& tokenizer_;
    std::vector<std::int32_t> context_;
    std::string context_text_;
    std::vector<std::int32_t> held_;
    std::string piece_;
};

// Ends a text before the first stop string, and holds back beginnings of stop strings.
class StopStrings {
 public:
    // Throws a request error: more than 16 strings, or one that is not UTF-8 of 1 to 1,000 characters.
    explicit StopStrings(std::vector<std::string> strings);
    // Add a piece. Return the text that can no longer be a part of a stop string.
    std::string push(std::string_view piece);
    // Return the text that is still held back. Call it when the text has ended.
    std::string finish();
    // Whether a stop string is complete.
    [[nodiscard]] bool found() const { return found_; }
    [[nodiscard]] const std::vector<std::string>& strings() const { return strings_; }

 private:
    // The size of the longest end of the held text that is a beginning of a string.
    [[nodiscard]] std::size_t overlap(std::string_view string) const;

    std::vector<std::string> strings_;
    std::string held_;
    bool found_ = false;
};

}  // namespace molkv
