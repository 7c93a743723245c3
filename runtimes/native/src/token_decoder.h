// The decoder of a tokenizer: tokens to text.
#pragma once

#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "json.h"
#include "normalizer.h"
#include "pre_tokenizer.h"

namespace molkv {

// Return the byte of a token such as <0xE4>, or nothing.
std::optional<char> byte_of_token(std::string_view token);

// The decoders ByteLevel and Metaspace, and the Sequence of Replace, ByteFallback, Fuse and Strip. Each of the four may
// be missing.
class TokenDecoder {
 public:
    // Read the field `decoder`. Throws if it has another type.
    explicit TokenDecoder(const std::optional<JsonValue>& field, const JsonValue& root);
    // Return the text of tokens. Bytes that are not a character become U+FFFD.
    [[nodiscard]] std::string decode(const std::vector<std::string_view>& tokens) const;

 private:
    void read_sequence(const JsonValue& sequence);
    [[nodiscard]] std::string decode_sequence(const std::vector<std::string_view>& tokens) const;

    bool is_byte_level_ = false;
    std::optional<Metaspace> metaspace_;
    std::vector<Replacement> replacements_;
    bool byte_fallback_ = false;
    std::string stripped_;  // removed once at the start of the text
};

}  // namespace molkv
