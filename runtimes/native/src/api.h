// The objects behind the handles of the C API.
#pragma once

#include <memory>
#include <string>

#include "generation.h"
#include "model.h"
#include "molkv.h"
#include "session.h"

struct molkv_model {
    molkv_model(const OrtApiBase* base, std::shared_ptr<const molkv::FileSource> source, const molkv::Target& target,
                const std::string& profile, bool skip_provider_check)
        : model(base, std::move(source), target, profile, skip_provider_check),
          placements(model.describe_placements()) {}

    molkv::Model model;
    std::string placements;
    std::string report;  // of the last self-test
};

struct molkv_session {
    molkv_session(const molkv::Model& model, std::int64_t batch_size, const molkv_session_options& options)
        : session(model, batch_size, options.max_length, options.prefill_chunk) {}

    molkv::Session session;
};

struct molkv_generation {
    molkv_generation(molkv::Session& session, std::span<const molkv::Prompt> prompts,
                     const molkv::GenerationOptions& options)
        : continuation(session, prompts, options) {}

    molkv::Continuation continuation;
};
