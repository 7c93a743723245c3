// The fields that MoLE and MoLKV share: types, ranges, and the relations between them.
#include "lookup_experts.h"

#include <string_view>

#include "model_config.h"

namespace molkv {

namespace {

void one_of(const JsonValue& value, std::string_view first, std::string_view second) {
    const std::string_view found = value.string();
    if (found != first && found != second) value.refuse(found, text(first, " or ", second));
}

std::vector<std::int64_t> parse_expert_layers(const JsonValue& layers, std::int64_t layer_count) {
    std::vector<std::int64_t> found;
    for (const JsonValue& layer : layers.list()) {
        const std::int64_t least = found.empty() ? 0 : found.back() + 1;
        if (least >= layer_count) layer.refuse("a further layer", "ascending indices below num_hidden_layers");
        found.push_back(layer.integer(least, layer_count - 1));
    }
    return found;
}

// Check the fields that a model without experts does not use.
void check_dense(const JsonValue& model) {
    for (const auto* name : {"expert_key_size", "expert_window", "expert_intermediate_size"}) {
        static_cast<void>(model[name].integer(0, 0));
    }
    for (const auto* name : {"expert_rope", "expert_qk_norm"}) {
        if (model[name].boolean()) model[name].refuse("true", "false in a model without experts");
    }
    if (model["expert_gate"].string() != "none") {
        model["expert_gate"].refuse(model["expert_gate"].string(), "none in a model without experts");
    }
}

}  // namespace

void parse_lookup_experts(const JsonValue& model, ModelConfig& config) {
    model.expect_fields({"model_type",        "vocab_size",          "hidden_size",         "intermediate_size",
                         "num_hidden_layers", "num_attention_heads", "num_key_value_heads", "head_dim",
                         "hidden_act",        "rms_norm_eps",        "rope_theta",          "max_position_embeddings",
                         "num_experts",       "tie_word_embeddings", "expert_layers",       "expert_intermediate_size",
                         "expert_key_size",   "expert_window",       "expert_rope",         "expert_qk_norm",
                         "expert_gate"});
    const std::int64_t heads = parse_key_value_heads(model, config);
    const std::int64_t head_dim = parse_even_size(model["head_dim"]);
    for (std::int64_t layer = 0; layer < config.num_hidden_layers; layer++) {
        config.caches.push_back({layer, heads, head_dim});
    }
    one_of(model["hidden_act"], "silu", "gelu");
    config.rope_theta = parse_positive(model["rope_theta"]);
    config.num_experts = parse_size(model["num_experts"], 0);
    config.expert_layers = parse_expert_layers(model["expert_layers"], config.num_hidden_layers);
    static_cast<void>(parse_size(model["expert_intermediate_size"], 0));
    config.expert_key_size = parse_size(model["expert_key_size"], 0);
    config.expert_window = parse_size(model["expert_window"], 0);
    config.expert_rope = model["expert_rope"].boolean();
    static_cast<void>(model["expert_qk_norm"].boolean());
    one_of(model["expert_gate"], "none", "sigmoid");
    if ((config.num_experts == 0) != config.expert_layers.empty()) {
        model["expert_layers"].refuse(
            text(config.expert_layers.size(), " layers"),
            config.num_experts == 0 ? "none, since num_experts is 0" : "at least one, since num_experts is not 0");
    }
    if (config.num_experts == 0) check_dense(model);
}

}  // namespace molkv
