// The steps that continue texts.
#include "generation.h"

#include <algorithm>
#include <new>

#include "logprobs.h"
#include "utf8.h"

namespace molkv {

namespace {

std::vector<std::int32_t> end_ids(const Model& model, const GenerationOptions& options) {
    auto ids = options.stop_ids.value_or(model.bundle().manifest().generation.eos_token_ids);
    // A special token has no text in a stream, so its id must end the text.
    if (options.stop.empty() || !model.has_tokenizer()) return ids;
    for (const auto& string : options.stop) {
        const auto special = model.tokenizer().special_ids(string);
        ids.insert(ids.end(), special.begin(), special.end());
    }
    return ids;
}

const GenerationOptions& checked(const GenerationOptions& options, const Model& model) {
    if (options.max_new_tokens < 1) {
        fail(Kind::request, "max_new_tokens: found ", options.max_new_tokens, ", expected 1 or more");
    }
    const auto vocab_size = model.config().vocab_size;
    if (options.best_count < 0 || options.best_count > vocab_size) {
        fail(Kind::request, "best_count: found ", options.best_count, ", expected 0 to ", vocab_size);
    }
    if (options.sampling) check_sampling(*options.sampling, vocab_size);
    return options;
}

}  // namespace

Continuation::Continuation(Session& session, std::span<const Prompt> prompts, const GenerationOptions& options)
    : session_(session),
      sampler_(
          checked(options, session.model()).sampling.value_or(session.model().bundle().manifest().generation.sampling)),
      active_(prompts.size()),
      with_logprobs_(options.with_logprobs),
      best_count_(static_cast<std::size_t>(options.best_count)) {
    const StopStrings checked_stop(options.stop);  // before the tokenizer is loaded
    for (const auto& prompt : prompts) {
        texts_.push_back(make_text(static_cast<int>(texts_.size()), prompt, options.max_new_tokens));
    }
    if (!options.stop.empty() || (!options.without_text && session.model().has_tokenizer())) add_streams(options.stop);
    stop_ids_ = end_ids(session.model(), options);
    sampler_.reserve(static_cast<std::size_t>(session.model().config().vocab_size));
    best_.reserve(best_count_);
    number_ = session.begin_generation();
}

Continuation::Text Continuation::make_text(int sequence, const Prompt& prompt, std::int64_t max_new_tokens) const {
    const auto& model = session_.model();
    const std::string name = session_.batch_size() == 1 ? "the prompt" : molkv::text("prompt ", sequence + 1);
    const auto before = session_.ids(sequence);
    Text result;
    if (prompt.text) {
        const auto& tokenizer = model.tokenizer();
        if (!is_utf8(*prompt.text)) fail(Kind::request, name, " has bytes that are not text, expected UTF-8");
        result.prompt = tokenizer.encode(*prompt.text, before.empty());
    } else {
        result.prompt.assign(prompt.ids.begin(), prompt.ids.end());
    }
    result.start = before.size() + result.prompt.size();
    const auto length = static_cast<std::int64_t>(result.start);
    if (length == 0) fail(Kind::request, name, " has no tokens, expected at least one, since its sequence is empty");
    if (length > session_.max_length()) {
        const bool is_context = session_.max_length() == model.config().max_position_embeddings;
        fail(Kind::request, "the sequence has ", length, " tokens with ", name, ", expected at most ",
             session_.max_length(), is_context ? " (the context of the model)" : " (max_length of the session)");
    }
    model.check_ids(name, result.prompt);
    result.room = std::min(max_new_tokens, session_.max_length() + 1 - length);
    return result;
}

void Continuation::add_streams(const std::vector<std::string>& stop) {
    std::vector<std::int32_t> whole;
    for (std::size_t sequence = 0; sequence < texts_.size(); sequence++) {
        auto& text = texts_[sequence];
        const auto before = session_.ids(static_cast<std::int64_t>(sequence));
        whole.assign(before.begin(), before.end());
        whole.insert(whole.end(), text.prompt.begin(), text.prompt.end());
        text.stream = std::make_unique<TextStream>(session_.model().tokenizer(), whole);
        text.stop.emplace(stop);
    }
}

const Token* Continuation::next() {
    if (failure_) throw Error(*failure_);
    try {
        return advance();
    } catch (const Error& error) {
        failure_ = error;
        throw;
    } catch (const std::bad_alloc&) {
        failure_ = Error(Kind::memory, "there is not enough memory for the next token");
        throw Error(*failure_);
    }
}

const Token* Continuation::advance() {
    while (true) {
        if (sequence_ == session_.batch_size() && !step()) return nullptr;
        const int sequence = sequence_++;
        auto& text = texts_[static_cast<std::size_t>(sequence)];
        if (text.finish != MOLKV_FINISH_NONE) continue;
        if (!session_.is_current(number_)) {
            fail(Kind::request, "a later call changed the session, which ended this generation");
        }
        if (first_round_) return &choose(sequence, session_.append(sequence, text.prompt));
        const std::size_t size = logits_.size() / texts_.size();
        return &choose(sequence, logits_.subspan(static_cast<std::size_t>(sequence) * size, size));
    }
}

// Run the last tokens. Return false if all texts have ended.
bool Continuation::step() {
    bool goes_on = false;
    for (std::size_t sequence = 0; sequence < texts_.size(); sequence++) {
        active_[sequence] = texts_[sequence].finish == MOLKV_FINISH_NONE ? 1 : 0;
        goes_on = goes_on || active_[sequence] != 0;
    }
    if (!goes_on) return false;
    if (!session_.is_current(number_)) {
        fail(Kind::request, "a later call changed the session, which ended this generation");
    }
    logits_ = session_.step(active_);
    first_round_ = false;
    sequence_ = 0;
    return true;
}

const Token& Continuation::choose(int sequence, std::span<const float> logits) {
    auto& text = texts_[static_cast<std::size_t>(sequence)];
    token_ = Token();
    token_.sequence = sequence;
    token_.id = chosen_id(sequence, logits);
    if (with_logprobs_) {
        token_.logprob = log_probabilities(logits, token_.id, best_count_, best_);
        token_.best = best_;
    }
    text.room--;
    if (text.room == 0) text.finish = MOLKV_FINISH_LENGTH;
    if (std::find(stop_ids_.begin(), stop_ids_.end(), token_.id) != stop_ids_.end()) text.finish = MOLKV_FINISH_STOP;
    if (text.stream) complete_text(text, token_.id);
    token_.finish = text.finish;
    session_.push(sequence, token_.id);
    return token_;
}

std::int32_t Continuation::chosen_id(int sequence, std::span<const float> logits) {
    const auto ids = session_.ids(sequence);
    const std::size_t start = texts_[static_cast<std::size_t>(sequence)].start;
    try {
        return sampler_.choose(logits, ids.first(start), ids.subspan(start), static_cast<std::uint32_t>(sequence));
    } catch (const Error& error) {
        session_.drop_state();
        fail(error.kind(), "position ", ids.size(), " of sequence ", sequence, ": ", error.what());
    }
}

// Set the text that a token completes. A token with an end id is never decoded. A stop string ends the text.
void Continuation::complete_text(Text& text, std::int32_t id) {
    piece_ = text.finish == MOLKV_FINISH_STOP ? std::string() : text.stop->push(text.stream->push(id));
    if (text.finish != MOLKV_FINISH_NONE) piece_ += text.stop->push(text.stream->finish());
    if (text.stop->found()) text.finish = MOLKV_FINISH_STOP;
    if (text.finish != MOLKV_FINISH_NONE) piece_ += text.stop->finish();
    token_.text = piece_;
}

}  // namespace molkv
