// The normalizer of a tokenizer: what changes a text before it is split into words.
#pragma once

#include <cstddef>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "json.h"

namespace molkv {

// Replace each occurrence of `from`, which must not be empty, from left to right.
std::string replace_all(std::string_view text, std::string_view from, std::string_view to);

// A step of type Replace, in a normalizer or a decoder. It replaces a text, not a regular expression.
struct Replacement {
    // Throws if a text is missing or empty.
    explicit Replacement(const JsonValue& part);
    std::string from;
    std::string to;
};

// The factor by which steps can make a text longer. A hostile file with many steps could fill the memory.
class Growth {
 public:
    // Add a step that replaces `from` bytes by `to` bytes. Refuses the step if all steps together have a factor
    // above 64.
    void add(const JsonValue& step, std::size_t from, std::size_t to);

 private:
    std::size_t factor_ = 1;
};

// A list of the steps NFC, Prepend and Replace.
class Normalizer {
 public:
    // Read the field `normalizer`: null, missing, one step, or a Sequence. Throws if it has another type.
    explicit Normalizer(const std::optional<JsonValue>& field);
    [[nodiscard]] std::string normalize(std::string_view text) const;

 private:
    struct Step {
        enum class Type { nfc, prepend, replace } type;
        std::string from;
        std::string to;
    };
    void read(const JsonValue& part, Growth& growth);
    std::vector<Step> steps_;
};

}  // namespace molkv
