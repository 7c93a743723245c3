// The family MoLE (arXiv 2503.15798): a position mixes the experts of its own token. An expert is a value [d].
#include "error.h"
#include "family.h"
#include "lookup_experts.h"

namespace molkv {

namespace {

class Mole final : public Family {
 public:
    void parse(const JsonValue& model, ModelConfig& config) const override { parse_lookup_experts(model, config); }
    [[nodiscard]] bool has_static_graphs() const override { return true; }

    [[nodiscard]] std::vector<RecordVector> record_vectors(const ModelConfig& config) const override {
        return {{"value", {config.num_experts, config.hidden_size}, true, "scale"}};
    }

    [[nodiscard]] std::vector<TensorInfo> expert_inputs(const ModelConfig& config, DType /*window*/) const override {
        std::vector<TensorInfo> inputs;
        for (const std::int64_t layer : config.expert_layers) {
            inputs.push_back({text("expert_value.", layer),
                              DType::float32,
                              {"batch", "length", config.num_experts, config.hidden_size}});
        }
        return inputs;
    }

    [[nodiscard]] std::vector<TensorInfo> static_expert_inputs(const ModelConfig& config, std::int64_t length,
                                                               const std::vector<std::int64_t>& layers,
                                                               DType dtype) const override {
        std::vector<TensorInfo> inputs;
        inputs.reserve(layers.size());
        for (const std::int64_t layer : layers) {
            inputs.push_back({text("expert_value.", layer), dtype, {length, config.num_experts, config.hidden_size}});
        }
        return inputs;
    }

    [[nodiscard]] bool has_position_ids(const ModelConfig& /*config*/) const override { return false; }
    [[nodiscard]] bool has_window(const ModelConfig& /*config*/) const override { return false; }
    [[nodiscard]] bool has_int8_window() const override { return false; }
    [[nodiscard]] std::vector<Rotation> expert_rotations(const ModelConfig& /*config*/) const override { return {}; }
};

}  // namespace

const Family& mole_family() {
    static const Mole family;
    return family;
}

}  // namespace molkv
