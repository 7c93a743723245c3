// The tokenizer: added tokens, normalizer, pre-tokenizer, model, post-processor and decoder, in this order.
#include "tokenizer.h"

#include <algorithm>
#include <limits>
#include <utility>

#include "added_tokens.h"
#include "bpe.h"
#include "json.h"
#include "json_fields.h"
#include "normalizer.h"
#include "post_processor.h"
#include "pre_tokenizer.h"
#include "token_decoder.h"
#include "utf8.h"

namespace molkv {

struct Tokenizer::Parts {
    explicit Parts(const JsonValue& root)
        : bpe(root["model"]),
          normalizer(root.find("normalizer")),
          pre_tokenizer(root.find("pre_tokenizer")),
          post_processor(root.find("post_processor")),
          decoder(root.find("decoder"), root),
          added(root.find("added_tokens"), bpe.vocabulary(), normalizer) {}

    // Append the ids of a text between added tokens.
    void encode_text(std::string_view part, bool is_first, std::vector<std::int32_t>& ids) const {
        const std::string normalized = normalizer.normalize(part);
        for (const auto& [text, token] : added.normalized().split(normalized)) {
            if (token != nullptr) {
                ids.push_back(token->id);
                continue;
            }
            const bool is_start = is_first && text.data() == normalized.data();
            for (const std::string& word : pre_tokenizer.split(std::string(text), is_start)) bpe.encode(word, ids);
        }
    }

    // Return the token of an id as a decoder gets it, or nothing.
    [[nodiscard]] std::optional<std::string_view> token(std::int32_t id) const {
        if (const AddedToken* token = added.find(id)) return token->text;
        const auto place = bpe.vocabulary().place(id);
        return place ? std::optional(bpe.vocabulary().token(*place)) : std::nullopt;
    }

    [[nodiscard]] bool is_hidden(std::int32_t id) const {
        const AddedToken* token = added.find(id);
        return token != nullptr && token->hidden;
    }

    Bpe bpe;
    Normalizer normalizer;
    PreTokenizer pre_tokenizer;
    PostProcessor post_processor;
    TokenDecoder decoder;
    AddedTokens added;
};

Tokenizer::Tokenizer(std::string content, std::string where) {
    if (content.size() > std::numeric_limits<std::int32_t>::max()) {
        fail(Kind::bundle, where, ": found ", content.size(), " bytes, expected less than 2 GiB");
    }
    const Json json(std::move(content), std::move(where), Kind::bundle);
    if (const auto version = json.root().find("version")) expect_text(*version, "1.0");
    parts_ = std::make_unique<Parts>(json.root());
}

Tokenizer::~Tokenizer() = default;

std::vector<std::int32_t> Tokenizer::encode(std::string_view text, bool add_special_tokens) const {
    std::vector<std::int32_t> ids;
    if (add_special_tokens) ids = parts_->post_processor.before();
    for (const auto& [part, token] : parts_->added.raw().split(text)) {
        if (token != nullptr) {
            ids.push_back(token->id);
        } else {
            parts_->encode_text(part, part.data() == text.data(), ids);
        }
    }
    const std::vector<std::int32_t>& after = parts_->post_processor.after();
    if (add_special_tokens) ids.insert(ids.end(), after.begin(), after.end());
    return ids;
}

std::string Tokenizer::decode(std::span<const std::int32_t> ids) const {
    std::vector<std::string_view> tokens;
    tokens.reserve(ids.size());
    for (const std::int32_t id : ids) {
        const auto token = parts_->token(id);
        if (token && !parts_->is_hidden(id)) tokens.push_back(*token);
    }
    return parts_->decoder.decode(tokens);
}

bool Tokenizer::has(std::int32_t id) const {
    return parts_->token(id).has_value();
}

bool Tokenizer::has_text(std::int32_t id) const {
    const auto token = parts_->token(id);
    return token && !token->empty() && !parts_->is_hidden(id);
}

bool Tokenizer::is_special(std::int32_t id) const {
    const AddedToken* token = parts_->added.find(id);
    return token != nullptr && token->special;
}

bool Tokenizer::is_byte(std::int32_t id) const {
    const auto token = parts_->token(id);
    return token && byte_of_token(*token).has_value();
}

std::vector<std::int32_t> Tokenizer::special_ids(std::string_view content) const {
    std::vector<std::int32_t> ids;
    for (const AddedToken& token : parts_->added.tokens()) {
        if (token.special && token.content == content) ids.push_back(token.id);
    }
    return ids;
}

}  // namespace molkv
