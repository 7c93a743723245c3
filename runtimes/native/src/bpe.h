// Byte-pair encoding: a word to the ids of its tokens.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "json.h"
#include "vocabulary.h"

namespace molkv {

// The model of a tokenizer.json of type "BPE". The time for a word of n characters is O(n log n).
class Bpe {
 public:
    // Read the object `model`. Throws if it has another type, dropout, or prefixes or suffixes of tokens.
    explicit Bpe(const JsonValue& model);

    [[nodiscard]] const Vocabulary& vocabulary() const { return vocabulary_; }
    // Append the ids of a word. Throws a bundle error if the word has a part without a token, and the unknown token of
    // the model is not in its vocabulary.
    void encode(std::string_view word, std::vector<std::int32_t>& ids) const;

 private:
    struct Merge {
        std::uint32_t right;  // places in the vocabulary
        std::uint32_t joined;
        std::uint32_t rank;
    };
    struct Symbol;
    class Merging;

    void read_merges(const JsonValue& list);
    [[nodiscard]] const Merge* find_merge(std::uint32_t left, std::uint32_t right) const;
    [[nodiscard]] std::vector<std::uint32_t> characters(std::string_view word) const;
    [[nodiscard]] bool append_bytes(std::string_view character, std::vector<std::uint32_t>& places) const;
    [[nodiscard]] std::uint32_t unknown_place() const;

    Vocabulary vocabulary_;
    bool ignore_merges_;
    bool fuse_unknown_;
    std::optional<std::string> unknown_;
    std::optional<std::array<std::optional<std::uint32_t>, 256>> byte_places_;  // with byte_fallback only
    std::vector<std::size_t> first_merge_;  // of each left token; one more at the end
    std::vector<Merge> merges_;             // by left token, then by right token
};

}  // namespace molkv
