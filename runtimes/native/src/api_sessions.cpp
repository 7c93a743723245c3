// The C API: sessions, sampling and generation.
#include <limits>

#include "api.h"
#include "api_support.h"

using namespace molkv;

namespace {

constexpr std::int64_t default_new_tokens = 128;

SamplingParameters parameters_of(const molkv_sampling* given_sampling, const char* name) {
    const auto sampling = read_struct(given_sampling, name);
    SamplingParameters parameters;
    parameters.temperature = sampling.temperature;
    parameters.top_k = sampling.top_k;
    parameters.top_p = sampling.top_p;
    parameters.min_p = sampling.min_p;
    parameters.repetition_penalty = sampling.repetition_penalty;
    parameters.presence_penalty = sampling.presence_penalty;
    parameters.frequency_penalty = sampling.frequency_penalty;
    parameters.seed = sampling.seed;
    given_list(sampling.logit_bias, sampling.logit_bias_count, "sampling: logit_bias");
    for (std::size_t i = 0; i < sampling.logit_bias_count; i++) {
        parameters.logit_bias.emplace_back(sampling.logit_bias[i].id, sampling.logit_bias[i].bias);
    }
    return parameters;
}

GenerationOptions options_of(const molkv_generation_options* given_options) {
    GenerationOptions result;
    result.max_new_tokens = default_new_tokens;
    if (given_options == nullptr) return result;
    const auto options = read_struct(given_options, "options");
    result.max_new_tokens = options.max_new_tokens;
    if (options.sampling != nullptr) result.sampling = parameters_of(options.sampling, "options: sampling");
    given_list(options.stop_ids, options.stop_id_count, "options: stop_ids");
    if (options.stop_ids != nullptr) {
        result.stop_ids.emplace(options.stop_ids, options.stop_ids + options.stop_id_count);
    }
    given_list(options.stop, options.stop_count, "options: stop");
    for (std::size_t i = 0; i < options.stop_count; i++) {
        result.stop.emplace_back(given(options.stop[i], "options: stop: an item"));
    }
    result.with_logprobs = options.with_logprobs != 0;
    result.best_count = options.best_count;
    result.without_text = options.without_text != 0;
    return result;
}

Prompt prompt_of(const molkv_prompt& prompt) {
    Prompt result;
    if (prompt.text != nullptr) result.text.emplace(prompt.text, prompt.text_length);
    result.ids = {given_list(prompt.ids, prompt.id_count, "prompts: ids"), prompt.id_count};
    if (result.text && !result.ids.empty()) fail(Kind::request, "prompts: found text and ids, expected one of them");
    return result;
}

molkv_token token_of(const Token& token) {
    molkv_token result = {};
    result.sequence = token.sequence;
    result.id = token.id;
    result.finish = token.finish;
    if (token.text) {
        result.text = token.text->data();
        result.text_length = token.text->size();
    }
    result.logprob = token.logprob;
    result.best = token.best.data();
    result.best_count = token.best.size();
    return result;
}

void check_vocabulary(const char* name, std::span<const std::int32_t> ids, std::size_t vocab_size) {
    for (const auto id : ids) {
        if (id >= 0 && static_cast<std::size_t>(id) < vocab_size) continue;
        fail(Kind::request, name, ": found token id ", id, ", expected 0 to ", vocab_size - 1, " (the vocabulary)");
    }
}

}  // namespace

molkv_status molkv_session_create(molkv_model* model, const molkv_session_options* options, molkv_session** session) {
    return guarded([&] {
        given(model, "model");
        given(session, "session");
        molkv_session_options chosen = {};
        if (options != nullptr) chosen = read_struct(options, "options");
        const std::int64_t batch_size = chosen.batch_size == 0 ? 1 : chosen.batch_size;
        auto created = std::make_unique<molkv_session>(model->model, batch_size, chosen);
        *session = created.release();
        return MOLKV_OK;
    });
}

void molkv_session_free(molkv_session* session) {
    const std::unique_ptr<molkv_session> owned(session);
}

void molkv_session_cancel(molkv_session* session) {
    if (session != nullptr) session->session.cancel();
}

molkv_status molkv_session_ids(const molkv_session* session, int32_t sequence, const int32_t** ids, size_t* count) {
    return guarded([&] {
        const auto found = given(session, "session")->session.ids(sequence);
        given(ids, "ids");
        *given(count, "count") = found.size();
        *ids = found.data();
        return MOLKV_OK;
    });
}

molkv_status molkv_session_prefill(molkv_session* session, int32_t sequence, const int32_t* ids, size_t count,
                                   const float** logits) {
    return guarded([&] {
        given_list(ids, count, "ids");
        const auto found = given(session, "session")->session.prefill(sequence, {ids, count});
        if (logits != nullptr) *logits = found.data();
        return MOLKV_OK;
    });
}

molkv_status molkv_session_decode(molkv_session* session, const int32_t* ids, const uint8_t* active,
                                  const float** logits) {
    return guarded([&] {
        auto& own = given(session, "session")->session;
        const auto batch_size = static_cast<std::size_t>(own.batch_size());
        std::span<const std::uint8_t> going;
        if (active != nullptr) going = {active, batch_size};
        const auto found = own.decode({given(ids, "ids"), batch_size}, going);
        if (logits != nullptr) *logits = found.data();
        return MOLKV_OK;
    });
}

molkv_status molkv_session_rewind(molkv_session* session, int32_t sequence, int32_t length) {
    return guarded([&] {
        given(session, "session")->session.rewind(sequence, length);
        return MOLKV_OK;
    });
}

molkv_status molkv_session_fork(molkv_session* session, int32_t sequence, int32_t* copy) {
    return guarded([&] {
        given(copy, "copy");
        *copy = given(session, "session")->session.fork(sequence);
        return MOLKV_OK;
    });
}

molkv_status molkv_session_save(molkv_session* session, int32_t sequence, const char* path) {
    return guarded([&] {
        given(session, "session")->session.save(sequence, given(path, "path"));
        return MOLKV_OK;
    });
}

molkv_status molkv_session_restore(molkv_session* session, int32_t sequence, const char* path) {
    return guarded([&] {
        given(session, "session")->session.restore(sequence, given(path, "path"));
        return MOLKV_OK;
    });
}

molkv_status molkv_sampling_defaults(const molkv_model* model, molkv_sampling* sampling) {
    return guarded([&] {
        const auto defaults =
            model == nullptr ? SamplingParameters() : model->model.bundle().manifest().generation.sampling;
        molkv_sampling result = {};
        result.temperature = defaults.temperature;
        result.top_k = static_cast<std::int32_t>(defaults.top_k);
        result.top_p = defaults.top_p;
        result.min_p = defaults.min_p;
        result.repetition_penalty = defaults.repetition_penalty;
        write_struct(sampling, result, "sampling");
        return MOLKV_OK;
    });
}

molkv_status molkv_sample(const molkv_sampling* sampling, const float* logits, size_t vocab_size, const int32_t* prompt,
                          size_t prompt_count, const int32_t* generated, size_t generated_count, int32_t sequence,
                          int32_t* id) {
    return guarded([&] {
        const auto parameters = parameters_of(sampling, "sampling");
        if (vocab_size == 0 || vocab_size > std::numeric_limits<std::int32_t>::max()) {
            fail(Kind::request, "vocab_size: found ", vocab_size, ", expected 1 to 2147483647");
        }
        if (sequence < 0) fail(Kind::request, "sequence: found ", sequence, ", expected 0 or more");
        const std::span before(given_list(prompt, prompt_count, "prompt"), prompt_count);
        const std::span after(given_list(generated, generated_count, "generated"), generated_count);
        check_sampling(parameters, static_cast<std::int64_t>(vocab_size));
        check_vocabulary("prompt", before, vocab_size);
        check_vocabulary("generated", after, vocab_size);
        given(id, "id");
        Sampler sampler(parameters);
        *id =
            sampler.choose({given(logits, "logits"), vocab_size}, before, after, static_cast<std::uint32_t>(sequence));
        return MOLKV_OK;
    });
}

molkv_status molkv_generate(molkv_session* session, const molkv_prompt* prompts, size_t count,
                            const molkv_generation_options* options, molkv_generation** generation) {
    return guarded([&] {
        const auto batch_size = static_cast<std::size_t>(given(session, "session")->session.batch_size());
        given(generation, "generation");
        if (count != batch_size) {  // before the prompts are read
            fail(Kind::request, "found ", count, " prompts, expected ", batch_size,
                 ", one for each sequence of the session");
        }
        given(prompts, "prompts");
        const auto chosen = options_of(options);
        std::vector<Prompt> list;
        for (std::size_t i = 0; i < count; i++) list.push_back(prompt_of(prompts[i]));
        auto created = std::make_unique<molkv_generation>(session->session, list, chosen);
        *generation = created.release();
        return MOLKV_OK;
    });
}

molkv_status molkv_generation_next(molkv_generation* generation, molkv_token* token) {
    return guarded([&] {
        given(generation, "generation");
        common_size(token, "token");
        const auto* const next = generation->continuation.next();
        if (next == nullptr) return MOLKV_END;
        write_struct(token, token_of(*next), "token");
        return MOLKV_OK;
    });
}

void molkv_generation_free(molkv_generation* generation) {
    const std::unique_ptr<molkv_generation> owned(generation);
}
