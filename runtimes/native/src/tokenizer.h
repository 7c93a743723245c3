// The tokenizer of a bundle: byte-level BPE and byte-fallback BPE, from Hugging Face's tokenizer.json.
#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "error.h"

namespace molkv {

// Gives the same ids and texts as Hugging Face's tokenizers library. Threads may share it.
class Tokenizer {
 public:
    // Read a tokenizer.json. `where` names it in messages. Throws a bundle error if it is broken, or if it has a part
    // that this driver does not support; the message names the part.
    Tokenizer(std::string content, std::string where);
    ~Tokenizer();
    Tokenizer(const Tokenizer&) = delete;
    Tokenizer& operator=(const Tokenizer&) = delete;

    // Return the ids of a text, which must be UTF-8.
    [[nodiscard]] std::vector<std::int32_t> encode(std::string_view text, bool add_special_tokens) const;
    // Return the text of ids. Special tokens, and ids without a token, have no text.
    [[nodiscard]] std::string decode(std::span<const std::int32_t> ids) const;

    // Whether an id has a token in the tokenizer.
    [[nodiscard]] bool has(std::int32_t id) const;
    // Whether decode() gives text for an id: it has a token that is not hidden and not empty.
    [[nodiscard]] bool has_text(std::int32_t id) const;
    [[nodiscard]] bool is_special(std::int32_t id) const;
    // Whether a token is a byte token such as <0xE4>.
    [[nodiscard]] bool is_byte(std::int32_t id) const;
    // The ids of special tokens with this content.
    [[nodiscard]] std::vector<std::int32_t> special_ids(std::string_view content) const;

 private:
    struct Parts;
    std::unique_ptr<Parts> parts_;
};

}  // namespace molkv
