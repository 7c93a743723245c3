// Loading of graphs: their weights in place, their interface, and the providers that run their nodes.
#include <algorithm>
#include <array>
#include <optional>
#include <utility>

#include "graph_weights.h"
#include "onnxruntime.h"

namespace molkv {

namespace {

constexpr const char* cpu_provider = "CPUExecutionProvider";

// Return the dtype of a tensor of a graph; nothing for a type that no graph of a bundle has.
std::optional<DType> dtype_of(ONNXTensorElementDataType type) {
    for (const DType dtype : {DType::float32, DType::float16, DType::int64, DType::int32, DType::int8}) {
        if (tensor_type(dtype) == type) return dtype;
    }
    return std::nullopt;
}

// Reads the inputs or outputs of a loaded graph.
class Interface {
 public:
    Interface(const OnnxRuntime& runtime, const OrtSession* session) : runtime_(runtime), session_(session) {}

    [[nodiscard]] bool has_inputs(const std::vector<TensorInfo>& listed) const {
        const OrtApi& api = runtime_.api();
        std::size_t count = 0;
        check(api.SessionGetInputCount(session_, &count));
        return has(listed, count, api.SessionGetInputName, api.SessionGetInputTypeInfo);
    }

    [[nodiscard]] bool has_outputs(const std::vector<TensorInfo>& listed) const {
        const OrtApi& api = runtime_.api();
        std::size_t count = 0;
        check(api.SessionGetOutputCount(session_, &count));
        return has(listed, count, api.SessionGetOutputName, api.SessionGetOutputTypeInfo);
    }

 private:
    void check(OrtStatus* status) const { runtime_.check(status, Kind::bundle, "the interface of a graph"); }

    template <typename GetName, typename GetType>
    [[nodiscard]] bool has(const std::vector<TensorInfo>& listed, std::size_t count, GetName get_name,
                           GetType get_type) const {
        if (count != listed.size()) return false;
        for (std::size_t i = 0; i < count; i++) {
            OrtTypeInfo* type = nullptr;
            check(get_type(session_, i, &type));
            const Owned<OrtTypeInfo> owned(type, runtime_.api().ReleaseTypeInfo);
            if (name(i, get_name) != listed[i].name || !is(*type, listed[i])) return false;
        }
        return true;
    }

    template <typename GetName>
    [[nodiscard]] std::string name(std::size_t index, GetName get_name) const {
        OrtAllocator* allocator = nullptr;
        check(runtime_.api().GetAllocatorWithDefaultOptions(&allocator));
        char* found = nullptr;
        check(get_name(session_, index, allocator, &found));
        std::string copy = found;
        check(runtime_.api().AllocatorFree(allocator, found));
        return copy;
    }

    [[nodiscard]] bool is(const OrtTypeInfo& type, const TensorInfo& listed) const {
        const OrtApi& api = runtime_.api();
        const OrtTensorTypeAndShapeInfo* tensor = nullptr;
        check(api.CastTypeInfoToTensorInfo(&type, &tensor));
        if (tensor == nullptr) return false;
        ONNXTensorElementDataType element = ONNX_TENSOR_ELEMENT_DATA_TYPE_UNDEFINED;
        check(api.GetTensorElementType(tensor, &element));
        std::size_t count = 0;
        check(api.GetDimensionsCount(tensor, &count));
        if (dtype_of(element) != listed.dtype || count != listed.shape.size()) return false;
        std::vector<std::int64_t> sizes(count);
        std::vector<const char*> names(count);
        check(api.GetDimensions(tensor, sizes.data(), count));
        check(api.GetSymbolicDimensions(tensor, names.data(), count));
        for (std::size_t i = 0; i < count; i++) {
            if (sizes[i] != listed.shape[i].size || names[i] != listed.shape[i].name) return false;
        }
        return true;
    }

    const OnnxRuntime& runtime_;
    const OrtSession* session_;
};

// Throw a bundle error if a loaded graph has other inputs or outputs than the manifest says (check 15).
void check_interface(const OnnxRuntime& runtime, const OrtSession* session, const GraphFile& file,
                     const std::string& where) {
    const Interface interface(runtime, session);
    const char* wrong = !interface.has_inputs(file.inputs)     ? "inputs"
                        : !interface.has_outputs(file.outputs) ? "outputs"
                                                               : nullptr;
    if (wrong == nullptr) return;
    fail(Kind::bundle, where, ": its ", wrong, " differ from those in the manifest; export again");
}

// The nodes of a graph by provider, and the operators of each.
struct Assignment {
    std::vector<Placement> placements;
    std::map<std::string, std::map<std::string, std::size_t>> operators;
};

Assignment assignment(const OnnxRuntime& runtime, const OrtSession* session) {
    const OrtApi& api = runtime.api();
    const auto check = [&](OrtStatus* status) { runtime.check(status, Kind::provider, "the providers of a graph"); };
    Assignment found;
    std::map<std::string, Placement> by_name;
    const OrtEpAssignedSubgraph* const* groups = nullptr;
    std::size_t group_count = 0;
    check(api.Session_GetEpGraphAssignmentInfo(session, &groups, &group_count));
    for (const OrtEpAssignedSubgraph* group : std::span(groups, group_count)) {
        const char* provider = nullptr;
        check(api.EpAssignedSubgraph_GetEpName(group, &provider));
        const OrtEpAssignedNode* const* nodes = nullptr;
        std::size_t node_count = 0;
        check(api.EpAssignedSubgraph_GetNodes(group, &nodes, &node_count));
        Placement& placement = by_name[provider];
        placement.provider = provider;
        placement.nodes += node_count;
        if (placement.provider != cpu_provider) placement.partitions++;
        for (const OrtEpAssignedNode* node : std::span(nodes, node_count)) {
            const char* type = nullptr;
            check(api.EpAssignedNode_GetOperatorType(node, &type));
            found.operators[provider][type]++;
        }
    }
    for (auto& [name, placement] : by_name) found.placements.push_back(std::move(placement));
    std::stable_sort(found.placements.begin(), found.placements.end(),
                     [](const Placement& a, const Placement& b) { return a.nodes > b.nodes; });
    return found;
}

// Throw a provider error if providers other than the wanted one run nodes.
void check_placement(const Assignment& found, const Preset& wanted, const std::string& where) {
    std::size_t nodes = 0;
    std::string operators;
    for (const Placement& placement : found.placements) {
        if (placement.provider == wanted.provider) continue;
        nodes += placement.nodes;
        for (const auto& [type, count] : found.operators.at(placement.provider)) {
            operators += text(operators.empty() ? "" : ", ", count, " ", type);
        }
    }
    if (nodes == 0) return;
    fail(Kind::provider, where, ": provider \"", wanted.name, "\" leaves ", nodes, " nodes to other providers (",
         operators, "), expected none because the provider is required");
}

// Use the bytes of a graph in ORT format, and the weights in them, without a copy. Refuse an ONNX file with the name of
// such a graph, since nobody checked its nodes.
void use_in_place(const OnnxRuntime& runtime, OrtSessionOptions* options) {
    constexpr std::array<std::array<const char*, 2>, 3> entries = {
        {{"session.load_model_format", "ORT"},
         {"session.use_ort_model_bytes_directly", "1"},
         {"session.use_ort_model_bytes_for_initializers", "1"}}};
    for (const auto& [name, value] : entries) {
        runtime.check(runtime.api().AddSessionConfigEntry(options, name, value), Kind::provider,
                      "the options of a session");
    }
}

}  // namespace

ONNXTensorElementDataType tensor_type(DType dtype) {
    switch (dtype) {
        case DType::float32:
            return ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT;
        case DType::float16:
            return ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT16;
        case DType::int8:
            return ONNX_TENSOR_ELEMENT_DATA_TYPE_INT8;
        case DType::uint8:
            return ONNX_TENSOR_ELEMENT_DATA_TYPE_UINT8;
        case DType::int32:
            return ONNX_TENSOR_ELEMENT_DATA_TYPE_INT32;
        case DType::int64:
            return ONNX_TENSOR_ELEMENT_DATA_TYPE_INT64;
        case DType::int4:
        case DType::nf4:
            break;
    }
    return ONNX_TENSOR_ELEMENT_DATA_TYPE_UNDEFINED;  // 4-bit codes are only in records
}

GraphSession::GraphSession(const OnnxRuntime& runtime, const Bundle& bundle, const GraphFile& file,
                           std::shared_ptr<const MappedFile> weights, const Target& target)
    : runtime_(runtime),
      file_(file),
      weights_(std::move(weights)),
      own_memory_(runtime.preset(target.provider).own_memory) {
    const std::string where = bundle.path(file.file);
    const bool is_ort_format = bundle.graph().is_ort_format();
    if (is_ort_format && target.required) {
        fail(Kind::provider, where,
             ": is a graph in ORT format, of which ONNX Runtime does not tell where nodes run, so "
             "provider \"",
             target.provider, "\" cannot be required");
    }
    const Owned<OrtSessionOptions> options = session_options(runtime, target);
    std::string content;
    std::span<const std::byte> graph = weights_->bytes();
    if (is_ort_format) {
        use_in_place(runtime, options.get());
    } else {
        content = bundle.read_graph(file);
        graph = std::as_bytes(std::span(content));
        add_weights(runtime, options.get(), content, where, weights_->bytes());
    }
    OrtSession* session = nullptr;
    {
        // Loading copies most weights into the layout of the kernels, one after the other.
        const PageReleaser releaser(*weights_);
        runtime.check(runtime.api().CreateSessionFromArray(runtime.environment(), graph.data(), graph.size(),
                                                           options.get(), &session),
                      Kind::provider, text(where, ": provider \"", target.provider, "\" cannot load it"));
    }
    session_ = {session, runtime.api().ReleaseSession};
    if (!is_ort_format) {
        Assignment found = assignment(runtime, session);
        if (target.required) check_placement(found, runtime.preset(target.provider), where);
        placements_ = std::move(found.placements);
    }
    check_interface(runtime, session, file_, where);
}

}  // namespace molkv
