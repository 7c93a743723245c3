// The normalizer of a tokenizer: what changes a text before it is split into words.
#pragma once

#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "json.h"

namespace molkv {

// Replace each occurrence of `from`, which must not be empty, from left to right.
std::string replace_all(std::string_view text, std::string_view from, std::string_view to);

// A list of the steps NFC, Prepend and Replace (of a text, not of a regular expression).
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
    void read(const JsonValue& part);
    std::vector<Step> steps_;
};

}  // namespace molkv
