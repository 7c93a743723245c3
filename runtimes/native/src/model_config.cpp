// The field `model` of a manifest: types, ranges, and the relations between fields.
#include "model_config.h"

#include <limits>
#include <string_view>

#include "family.h"

namespace molkv {

namespace {

constexpr std::int64_t largest_size = std::numeric_limits<std::int32_t>::max();
constexpr std::int64_t most_layers = 65'536;
constexpr std::int64_t most_positions = std::int64_t{1} << 24U;

double positive(const JsonValue& value) {
    const double number = value.number();
    if (number <= 0) value.refuse(text(number), "a number above 0");
    return number;
}

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

void check_relations(const JsonValue& model, const ModelConfig& config) {
    if (config.num_attention_heads % config.num_key_value_heads != 0) {
        model["num_attention_heads"].refuse(text(config.num_attention_heads),
                                            text("a multiple of num_key_value_heads, ", config.num_key_value_heads));
    }
    if (config.head_dim % 2 != 0) model["head_dim"].refuse(text(config.head_dim), "an even number");
    if ((config.num_experts == 0) != config.expert_layers.empty()) {
        model["expert_layers"].refuse(
            text(config.expert_layers.size(), " layers"),
            config.num_experts == 0 ? "none, since num_experts is 0" : "at least one, since num_experts is not 0");
    }
    if (config.num_experts == 0) check_dense(model);
    if (const std::string refusal = find_family(config.model_type)->check(config); !refusal.empty()) {
        model.refuse(refusal, text("a model of type ", config.model_type));
    }
}

}  // namespace

ModelConfig parse_model(const JsonValue& model) {
    model.expect_fields({"model_type",        "vocab_size",          "hidden_size",         "intermediate_size",
                         "num_hidden_layers", "num_attention_heads", "num_key_value_heads", "head_dim",
                         "hidden_act",        "rms_norm_eps",        "rope_theta",          "max_position_embeddings",
                         "num_experts",       "tie_word_embeddings", "expert_layers",       "expert_intermediate_size",
                         "expert_key_size",   "expert_window",       "expert_rope",         "expert_qk_norm",
                         "expert_gate"});
    ModelConfig config;
    config.model_type = model["model_type"].string();
    if (find_family(config.model_type) == nullptr) {
        model["model_type"].refuse(config.model_type.substr(0, 40), family_names());
    }
    const auto size = [&model](std::string_view name, std::int64_t least) {
        return model[name].integer(least, largest_size);
    };
    config.vocab_size = size("vocab_size", 1);
    config.hidden_size = size("hidden_size", 1);
    static_cast<void>(size("intermediate_size", 1));
    config.num_hidden_layers = model["num_hidden_layers"].integer(1, most_layers);
    config.num_attention_heads = size("num_attention_heads", 1);
    config.num_key_value_heads = size("num_key_value_heads", 1);
    config.head_dim = size("head_dim", 1);
    config.max_position_embeddings = model["max_position_embeddings"].integer(1, most_positions);
    one_of(model["hidden_act"], "silu", "gelu");
    static_cast<void>(positive(model["rms_norm_eps"]));
    config.rope_theta = positive(model["rope_theta"]);
    static_cast<void>(model["tie_word_embeddings"].boolean());
    config.num_experts = size("num_experts", 0);
    config.expert_layers = parse_expert_layers(model["expert_layers"], config.num_hidden_layers);
    static_cast<void>(size("expert_intermediate_size", 0));
    config.expert_key_size = size("expert_key_size", 0);
    config.expert_window = size("expert_window", 0);
    config.expert_rope = model["expert_rope"].boolean();
    static_cast<void>(model["expert_qk_norm"].boolean());
    one_of(model["expert_gate"], "none", "sigmoid");
    check_relations(model, config);
    return config;
}

}  // namespace molkv
