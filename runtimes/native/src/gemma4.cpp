// The family Gemma 4 (E2B and E4B, text). Its experts are the per-layer embeddings: in each layer a value [P] of the
// position's own token. Layers with sliding and with full attention have heads of different sizes, and the last layers
// use the KV caches of earlier layers.
#include <array>
#include <numeric>
#include <optional>
#include <string_view>

#include "error.h"
#include "family.h"
#include "model_config.h"

namespace molkv {

namespace {

constexpr std::array<std::string_view, 2> layer_types = {"sliding_attention", "full_attention"};

// Return the index in `layer_types` of each layer.
std::vector<std::size_t> parse_layer_types(const JsonValue& types, std::int64_t layer_count) {
    const std::vector<JsonValue> items = types.list();
    if (items.size() != static_cast<std::size_t>(layer_count)) {
        types.refuse(text(items.size(), " layers"), text("num_hidden_layers, ", layer_count));
    }
    std::vector<std::size_t> found;
    for (const JsonValue& item : items) {
        const std::string_view type = item.string();
        if (type != layer_types[0] && type != layer_types[1]) {
            item.refuse(type.substr(0, 40), text(layer_types[0], " or ", layer_types[1]));
        }
        found.push_back(type == layer_types[0] ? 0 : 1);
    }
    return found;
}

// Set the KV caches. A shared layer uses the cache of the last layer of its type that has one.
void parse_caches(const JsonValue& model, ModelConfig& config) {
    const std::int64_t heads = parse_key_value_heads(model, config);
    const std::array<std::int64_t, 2> sizes = {parse_even_size(model["head_dim"]),
                                               parse_even_size(model["global_head_dim"])};
    const std::vector<std::size_t> types = parse_layer_types(model["layer_types"], config.num_hidden_layers);
    const JsonValue shared = model["num_kv_shared_layers"];
    const std::int64_t first = config.num_hidden_layers - shared.integer(0, config.num_hidden_layers - 1);
    std::array<std::optional<std::size_t>, 2> latest;  // cache of each type
    for (std::int64_t layer = 0; layer < config.num_hidden_layers; layer++) {
        const std::size_t type = types[static_cast<std::size_t>(layer)];
        if (layer < first) {
            latest[type] = config.caches.size();
            config.caches.push_back({layer, heads, sizes[type]});
        } else if (latest[type]) {
            config.shared_caches.push_back({layer, *latest[type]});
        } else {
            shared.refuse(text(config.num_hidden_layers - first),
                          text("fewer, since no layer before layer ", first, " has ", layer_types[type]));
        }
    }
}

class Gemma4 final : public Family {
 public:
    void parse(const JsonValue& model, ModelConfig& config) const override {
        model.expect_fields({"model_type",
                             "vocab_size",
                             "hidden_size",
                             "intermediate_size",
                             "num_hidden_layers",
                             "num_attention_heads",
                             "num_key_value_heads",
                             "head_dim",
                             "global_head_dim",
                             "layer_types",
                             "num_kv_shared_layers",
                             "use_double_wide_mlp",
                             "sliding_window",
                             "hidden_size_per_layer_input",
                             "rms_norm_eps",
                             "sliding_rope_theta",
                             "full_rope_theta",
                             "partial_rotary_factor",
                             "final_logit_softcapping",
                             "max_position_embeddings",
                             "tie_word_embeddings"});
        parse_caches(model, config);
        config.per_layer_size = parse_size(model["hidden_size_per_layer_input"], 1);
        config.expert_layers.resize(static_cast<std::size_t>(config.num_hidden_layers));
        std::iota(config.expert_layers.begin(), config.expert_layers.end(), 0);
        static_cast<void>(model["use_double_wide_mlp"].boolean());
        static_cast<void>(parse_size(model["sliding_window"], 1));
        for (const auto* name : {"sliding_rope_theta", "full_rope_theta"}) {
            static_cast<void>(parse_positive(model[name]));
        }
        const JsonValue part = model["partial_rotary_factor"];
        if (const double found = part.number(); found <= 0 || found > 1) {
            part.refuse(text(found), "a number above 0 and at most 1");
        }
        const JsonValue cap = model["final_logit_softcapping"];
        if (const double found = cap.number(); found < 0) cap.refuse(text(found), "a number of at least 0");
    }

    [[nodiscard]] std::vector<RecordVector> record_vectors(const ModelConfig& config) const override {
        return {{"value", {config.per_layer_size}, true, "scale"}};
    }

    [[nodiscard]] std::vector<TensorInfo> expert_inputs(const ModelConfig& config, DType /*window*/) const override {
        std::vector<TensorInfo> inputs;
        for (const std::int64_t layer : config.expert_layers) {
            inputs.push_back(
                {text("expert_value.", layer), DType::float32, {"batch", "length", config.per_layer_size}});
        }
        return inputs;
    }

    [[nodiscard]] bool has_static_graphs() const override { return false; }
    [[nodiscard]] std::vector<TensorInfo> static_expert_inputs(const ModelConfig& /*config*/, std::int64_t /*length*/,
                                                               const std::vector<std::int64_t>& /*layers*/,
                                                               DType /*dtype*/) const override {
        return {};
    }
    [[nodiscard]] std::vector<Rotation> expert_rotations(const ModelConfig& /*config*/) const override { return {}; }
    [[nodiscard]] bool has_position_ids(const ModelConfig& /*config*/) const override { return false; }
    [[nodiscard]] bool has_window(const ModelConfig& /*config*/) const override { return false; }
    [[nodiscard]] bool has_int8_window() const override { return false; }
};

}  // namespace

const Family& gemma4_family() {
    static const Gemma4 family;
    return family;
}

}  // namespace molkv
