// The list of the families' states.
#include "experts.h"

#include <limits>

#include "family.h"
#include "molkv_window.h"
#include "present_experts.h"

namespace molkv {

namespace {

bool has_window(const ModelConfig& config) {
    return find_family(config.model_type)->has_window(config);
}

}  // namespace

float hidden_score(const Graph& graph) {
    return is_static(graph) ? -10000.0F : -std::numeric_limits<float>::infinity();
}

DType input_dtype(const Graph& graph) {
    return is_static(graph) ? graph.kv_dtype : DType::float32;
}

std::unique_ptr<ExpertState> make_expert_state(const Bundle& bundle, const RecordDecoder& decoder, int batch_size,
                                               std::int64_t max_length) {
    if (has_window(bundle.config())) return std::make_unique<ExpertWindow>(bundle, decoder, batch_size, max_length);
    return std::make_unique<PresentExperts>(bundle, decoder, batch_size);
}

std::size_t expert_state_bytes(const Bundle& bundle, std::int64_t max_length) {
    return has_window(bundle.config()) ? ExpertWindow::bytes(bundle, max_length) : 0;
}

}  // namespace molkv
