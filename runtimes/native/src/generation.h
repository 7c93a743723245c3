// The continuation of a batch of texts, token by token (docs/bundle-format.md, "The end" and "Text").
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "molkv.h"
#include "sampling.h"
#include "session.h"
#include "text_stream.h"

namespace molkv {

// A text, or token ids, to append to a sequence.
struct Prompt {
    std::optional<std::string_view> text;
    std::span<const std::int32_t> ids;
};

struct GenerationOptions {
    std::int64_t max_new_tokens = 128;
    std::optional<SamplingParameters> sampling;         // default: that of the bundle
    std::optional<std::vector<std::int32_t>> stop_ids;  // default: the end ids of the bundle
    std::vector<std::string> stop;
    bool without_text = false;
    bool with_logprobs = false;
    std::int64_t best_count = 0;
};

// One generated token. Valid until the next call with the generation.
struct Token {
    int sequence = 0;
    std::int32_t id = 0;
    molkv_finish finish = MOLKV_FINISH_NONE;
    std::optional<std::string_view> text;
    double logprob = 0;
    std::span<const molkv_logprob> best;
};

// A running call. A step runs the last token of each text that goes on; texts that have ended wait in the batch.
class Continuation {
 public:
    // One prompt for each sequence of the session. Changes nothing in the session. Throws a request error, or a bundle
    // error if text is needed and there is no tokenizer.
    Continuation(Session& session, std::span<const Prompt> prompts, const GenerationOptions& options);
    Continuation(const Continuation&) = delete;
    Continuation& operator=(const Continuation&) = delete;
    // Forgets a cancellation that came too late for this generation. The session must still exist.
    ~Continuation() { session_.forget_cancellation(number_); }

    // Return the next token, or nothing after the last one. After an error, each call throws this error again.
    const Token* next();

 private:
    struct Text {
        std::vector<std::int32_t> prompt;    // not appended yet
        std::size_t start = 0;               // tokens before the first generated one
        std::int64_t room = 0;               // tokens that may still be added
        std::unique_ptr<TextStream> stream;  // nothing: the tokens have no text
        std::optional<StopStrings> stop;
        molkv_finish finish = MOLKV_FINISH_NONE;
    };
    [[nodiscard]] Text make_text(int sequence, const Prompt& prompt, std::int64_t max_new_tokens) const;
    void add_streams(const std::vector<std::string>& stop);
    const Token* advance();
    bool step();
    const Token& choose(int sequence, std::span<const float> logits);
    std::int32_t chosen_id(int sequence, std::span<const float> logits);
    void complete_text(Text& text, std::int32_t id);

    Session& session_;
    std::uint64_t number_ = 0;
    std::vector<Text> texts_;
    Sampler sampler_;
    std::vector<std::int32_t> stop_ids_;
    std::vector<std::uint8_t> active_;
    std::span<const float> logits_;  // [B, V]
    bool first_round_ = true;
    int sequence_ = 0;  // the next one that gets a token
    Token token_;
    std::string piece_;
    bool with_logprobs_;
    std::size_t best_count_;
    std::vector<molkv_logprob> best_;
    std::optional<Error> failure_;
};

}  // namespace molkv
