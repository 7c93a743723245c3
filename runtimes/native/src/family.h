// The families of models (docs/architecture.md, "A new family"): the contents of records and the inputs of graphs.
// Each family has a file of its own, and one entry in family.cpp.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "json.h"
#include "manifest.h"

namespace molkv {

// A vector of a record in each layer with experts, as `expert_{name}.{layer}` in the manifest.
struct RecordVector {
    std::string name;
    std::vector<std::int64_t> shape;
    bool quantized = false;  // whether a quantized store quantizes it; it then has scales under `scale_name`
    std::string scale_name;
};

// A rotation of positions that static graphs take as inputs `{prefix}rotary_cos` and `{prefix}rotary_sin`.
struct Rotation {
    std::string prefix;
    std::int64_t size = 0;  // numbers of a rotated vector
};

// What the format needs to know about a family.
class Family {
 public:
    virtual ~Family() = default;
    // Read the field `model` into a configuration that has the fields of all families (model_config.h). Checks that
    // there are no other fields, the types and ranges of the family's own fields, and relations. Throws a bundle error.
    virtual void parse(const JsonValue& model, ModelConfig& config) const = 0;
    // Whether bundles of this family can have the profiles of static graphs beside profile "cpu".
    [[nodiscard]] virtual bool has_static_graphs() const = 0;
    [[nodiscard]] virtual std::vector<RecordVector> record_vectors(const ModelConfig& config) const = 0;
    // The inputs of the graph of profile "cpu" that hold experts or their mask, in the order of the document.
    // window: dtype of the values in the expert window.
    [[nodiscard]] virtual std::vector<TensorInfo> expert_inputs(const ModelConfig& config, DType window) const = 0;
    // The same inputs of a static graph for `length` positions, for the layers whose experts it uses; before them cos
    // and sin of `expert_rotations`. All have the dtype `dtype`.
    [[nodiscard]] virtual std::vector<TensorInfo> static_expert_inputs(const ModelConfig& config, std::int64_t length,
                                                                       const std::vector<std::int64_t>& layers,
                                                                       DType dtype) const = 0;
    // Whether the graph of profile "cpu" has the input position_ids.
    [[nodiscard]] virtual bool has_position_ids(const ModelConfig& config) const = 0;
    // Whether a position attends to the experts of a window of positions, which the host keeps between steps.
    [[nodiscard]] virtual bool has_window(const ModelConfig& config) const = 0;
    // Whether a graph of profile "cpu" can have the values of an expert window as int8 codes, if the model has experts.
    [[nodiscard]] virtual bool has_int8_window() const = 0;
    // The rotations of experts in static graphs; the rotation of attention is not among them.
    [[nodiscard]] virtual std::vector<Rotation> expert_rotations(const ModelConfig& config) const = 0;
};

// Return the family with this model_type, or nullptr.
const Family* find_family(const std::string& model_type);
// Return the names of all families, for messages: "mole, molkv or gemma4_text".
std::string family_names();

}  // namespace molkv
