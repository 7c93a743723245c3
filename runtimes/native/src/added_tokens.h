// The added tokens of a tokenizer, such as <s>: their ids, and the search for them in texts.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "json.h"
#include "normalizer.h"
#include "vocabulary.h"

namespace molkv {

struct AddedToken {
    std::string content;
    std::string text;  // the content as the normalizer changes it (if `normalized`); it is searched and decoded
    std::int32_t id;
    bool special;
    bool hidden;       // in decoded texts: the text is the content of a special token
    bool single_word;  // found only between characters that are not of a word
    bool lstrip;       // white space before it belongs to it
    bool rstrip;       // white space after it belongs to it
    bool normalized;   // searched in the normalized text
};

// A part of a text: an added token, or text between added tokens.
struct TextPart {
    std::string_view text;
    const AddedToken* token;  // null for text
};

// The search for tokens of a list in a text. At each place the longest token counts.
class TokenSearch {
 public:
    struct Pattern {
        std::string text;
        const AddedToken* token;
    };
    // Of equal texts, the first pattern counts.
    explicit TokenSearch(std::vector<Pattern> patterns);
    // Return the parts of a text in their order. They overlap in one case: white space that a token takes (`rstrip`)
    // can be a part of the next token.
    [[nodiscard]] std::vector<TextPart> split(std::string_view text) const;

 private:
    [[nodiscard]] const Pattern* longest(std::string_view text) const;
    std::vector<Pattern> patterns_;     // sorted by text
    std::array<bool, 256> is_first_{};  // whether a pattern begins with a byte
};

class AddedTokens {
 public:
    // Read the field `added_tokens`. A token that is not in the vocabulary has the next free id, whatever id the file
    // has: so does Hugging Face's tokenizers library. Throws if a content occurs twice, or has more than 1,000 bytes.
    AddedTokens(const std::optional<JsonValue>& list, const Vocabulary& vocabulary, const Normalizer& normalizer);

    [[nodiscard]] const AddedToken* find(std::int32_t id) const;
    [[nodiscard]] const std::vector<AddedToken>& tokens() const { return tokens_; }
    // The searches in the text of the caller, and in normalized texts.
    [[nodiscard]] const TokenSearch& raw() const { return raw_; }
    [[nodiscard]] const TokenSearch& normalized() const { return normalized_; }

 private:
    [[nodiscard]] std::vector<TokenSearch::Pattern> patterns(bool is_normalized) const;
    std::vector<AddedToken> tokens_;
    std::vector<const AddedToken*> by_id_;
    TokenSearch raw_;
    TokenSearch normalized_;
};

}  // namespace molkv
