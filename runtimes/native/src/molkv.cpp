// The family MoLKV (arXiv 2512.09723): a position attends to the experts of the last W tokens. An expert is a key [dk]
// and a value [d].
#include "error.h"
#include "family.h"
#include "lookup_experts.h"
#include "model_config.h"

namespace molkv {

namespace {

class Molkv final : public Family {
 public:
    void parse(const JsonValue& model, ModelConfig& config) const override {
        parse_lookup_experts(model, config);
        if (config.num_experts == 0) return;
        for (const auto* name : {"expert_key_size", "expert_window"}) static_cast<void>(parse_size(model[name], 1));
        if (config.expert_rope) static_cast<void>(parse_even_size(model["expert_key_size"]));
    }
    [[nodiscard]] bool has_static_graphs() const override { return true; }

    [[nodiscard]] std::vector<RecordVector> record_vectors(const ModelConfig& config) const override {
        return {{"key", {config.num_experts, config.expert_key_size}, false, ""},
                {"value", {config.num_experts, config.hidden_size}, true, "scale"}};
    }

    [[nodiscard]] std::vector<TensorInfo> expert_inputs(const ModelConfig& config, DType window) const override {
        if (config.expert_layers.empty()) return {};
        std::vector<TensorInfo> inputs{{"expert_mask", DType::float32, {"blocks", "block_length", "window_experts"}}};
        for (const std::int64_t layer : config.expert_layers) {
            inputs.push_back(
                {text("expert_key.", layer), DType::float32, {"blocks", "window_experts", config.expert_key_size}});
            inputs.push_back({text("expert_value.", layer), window, {"blocks", "window_experts", config.hidden_size}});
            if (window != DType::int8) continue;
            inputs.push_back({text("expert_value_scale.", layer), DType::float32, {"blocks", 1, "window_experts"}});
        }
        return inputs;
    }

    [[nodiscard]] std::vector<TensorInfo> static_expert_inputs(const ModelConfig& config, std::int64_t length,
                                                               const std::vector<std::int64_t>& layers,
                                                               DType dtype) const override {
        if (layers.empty()) return {};
        std::vector<TensorInfo> inputs;
        for (const Rotation& rotation : expert_rotations(config)) {
            inputs.push_back({rotation.prefix + "rotary_cos", dtype, {length, rotation.size}});
            inputs.push_back({rotation.prefix + "rotary_sin", dtype, {length, rotation.size}});
        }
        const std::int64_t visible = (length + config.expert_window - 1) * config.num_experts;
        inputs.push_back({"expert_mask", dtype, {1, length, visible}});
        for (const std::int64_t layer : layers) {
            inputs.push_back({text("expert_key.", layer), dtype, {1, visible, config.expert_key_size}});
            inputs.push_back({text("expert_value.", layer), dtype, {1, visible, config.hidden_size}});
        }
        return inputs;
    }

    [[nodiscard]] bool has_position_ids(const ModelConfig& config) const override { return config.num_experts > 0; }
    [[nodiscard]] bool has_window(const ModelConfig& config) const override { return !config.expert_layers.empty(); }
    [[nodiscard]] bool has_int8_window() const override { return true; }

    [[nodiscard]] std::vector<Rotation> expert_rotations(const ModelConfig& config) const override {
        if (!config.expert_rope) return {};
        return {{"expert_", config.expert_key_size}};
    }
};

}  // namespace

const Family& molkv_family() {
    static const Molkv family;
    return family;
}

}  // namespace molkv
