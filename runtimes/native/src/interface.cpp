// The inputs and outputs of graphs, and their comparison with the manifest.
#include "interface.h"

#include <algorithm>

#include "error.h"
#include "family.h"

namespace molkv {

namespace {

void append(std::vector<TensorInfo>& list, std::vector<TensorInfo> more) {
    std::move(more.begin(), more.end(), std::back_inserter(list));
}

// Append the keys and values of a KV cache, under the number of a layer that uses it.
void append_cache(std::vector<TensorInfo>& list, const char* prefix, std::int64_t layer, const CacheShape& cache,
                  DType dtype) {
    for (const char* kind : {"key", "value"}) {
        list.push_back(
            {text(prefix, ".", layer, ".", kind), dtype, {"batch", cache.heads, "max_length", cache.head_dim}});
    }
}

// The number of layers that a static graph computes completely. A graph for more than one position returns no logits,
// so its last layer computes only keys and values.
std::int64_t complete_layers(const ModelConfig& config, std::int64_t length) {
    return config.num_hidden_layers - (length > 1 ? 1 : 0);
}

std::vector<TensorInfo> cpu_inputs(const ModelConfig& config, const Graph& graph) {
    const Family& family = *find_family(config.model_type);
    std::vector<TensorInfo> inputs{{"inputs_embeds", DType::float32, {"batch", "length", config.hidden_size}}};
    if (family.has_position_ids(config)) inputs.push_back({"position_ids", DType::int64, {"batch", "length"}});
    append(inputs, family.expert_inputs(config, graph.window_dtype));
    inputs.push_back({"seqlens_k", DType::int32, {"batch"}});
    inputs.push_back({"total_sequence_length", DType::int32, {}});
    inputs.push_back({"logits_to_keep", DType::int64, {1}});
    for (const CacheShape& cache : config.caches) {
        append_cache(inputs, "past_key_values", cache.layer, cache, graph.kv_dtype);
    }
    return inputs;
}

std::vector<TensorInfo> static_inputs(const ModelConfig& config, DType dtype, std::int64_t length) {
    const std::int64_t context = config.max_position_embeddings;
    const std::int64_t layers = complete_layers(config, length);
    const CacheShape& cache = config.caches.front();  // all have this shape
    std::vector<TensorInfo> inputs{{"inputs_embeds", dtype, {length, config.hidden_size}},
                                   {"rotary_cos", dtype, {length, 1, cache.head_dim}},
                                   {"rotary_sin", dtype, {length, 1, cache.head_dim}}};
    if (layers > 0) {
        const std::int64_t group = config.num_attention_heads / cache.heads;
        inputs.push_back({"attention_mask", dtype, {1, group * length, context + length}});
    }
    std::vector<std::int64_t> with_experts;
    std::copy_if(config.expert_layers.begin(), config.expert_layers.end(), std::back_inserter(with_experts),
                 [layers](std::int64_t layer) { return layer < layers; });
    append(inputs, find_family(config.model_type)->static_expert_inputs(config, length, with_experts, dtype));
    for (std::int64_t layer = 0; layer < layers; layer++) {
        inputs.push_back({text("past_key_values.", layer, ".key"), dtype, {cache.heads, cache.head_dim, context}});
        inputs.push_back({text("past_key_values.", layer, ".value"), dtype, {cache.heads, context, cache.head_dim}});
    }
    return inputs;
}

std::vector<TensorInfo> static_outputs(const ModelConfig& config, DType dtype, std::int64_t length) {
    std::vector<TensorInfo> outputs;
    if (length == 1) outputs.push_back({"logits", DType::float32, {1, config.vocab_size}});
    for (const auto& [layer, heads, head_dim] : config.caches) {
        outputs.push_back({text("present.", layer, ".key"), dtype, {heads, head_dim, length}});
        outputs.push_back({text("present.", layer, ".value"), dtype, {heads, length, head_dim}});
    }
    return outputs;
}

std::string shown(const TensorInfo& tensor) {
    std::string shape;
    for (const Dimension& size : tensor.shape) {
        shape += text(shape.empty() ? "" : ", ", size.size < 0 ? size.name : text(size.size));
    }
    return text(tensor.name, " ", dtype_name(tensor.dtype), " [", shape, "]").substr(0, 200);
}

void compare(const std::vector<TensorInfo>& found, const std::vector<TensorInfo>& expected, const char* what,
             const std::string& where) {
    if (found == expected) return;
    const auto [first, wanted] = std::mismatch(found.begin(), found.end(), expected.begin(), expected.end());
    fail(Kind::bundle, where, ": its ", what, " in the manifest: found ",
         first == found.end() ? "no further one" : shown(*first), ", expected ",
         wanted == expected.end() ? "no further one" : shown(*wanted), ", which follows from the model");
}

}  // namespace

std::vector<TensorInfo> graph_inputs(const ModelConfig& config, const Graph& graph, std::int64_t length) {
    return length == 0 ? cpu_inputs(config, graph) : static_inputs(config, graph.kv_dtype, length);
}

std::vector<TensorInfo> graph_outputs(const ModelConfig& config, const Graph& graph, std::int64_t length) {
    if (length > 0) return static_outputs(config, graph.kv_dtype, length);
    std::vector<TensorInfo> outputs{{"logits", DType::float32, {"batch", "logits_length", config.vocab_size}}};
    for (const CacheShape& cache : config.caches) {
        append_cache(outputs, "present", cache.layer, cache, graph.kv_dtype);
    }
    for (const SharedCache& shared : config.shared_caches) {
        append_cache(outputs, "present", shared.layer, config.caches[shared.source], graph.kv_dtype);
    }
    return outputs;
}

void check_interface(const ModelConfig& config, const Graph& graph, const GraphFile& file, const std::string& where) {
    compare(file.inputs, graph_inputs(config, graph, file.length), "inputs", where);
    compare(file.outputs, graph_outputs(config, graph, file.length), "outputs", where);
}

}  // namespace molkv
