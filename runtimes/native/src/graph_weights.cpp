// The weights of a graph: tensors in a mapped file.
#include "graph_weights.h"

#include <vector>

#include "onnx_model.h"

namespace molkv {

namespace {

// The bytes of a tensor in the file of weights. The check of the graph made sure that they are inside the file.
std::span<const std::byte> part_of(std::span<const std::byte> weights, const OnnxTensor& tensor) {
    std::size_t offset = 0;
    std::size_t length = 0;
    for (const auto& [key, value] : tensor.external_data) {
        if (key == "offset") offset = static_cast<std::size_t>(std::stoull(std::string(value)));
        if (key == "length") length = static_cast<std::size_t>(std::stoull(std::string(value)));
    }
    return weights.subspan(offset, length);
}

}  // namespace

void add_weights(const OnnxRuntime& runtime, OrtSessionOptions* options, std::string_view content,
                 const std::string& where, std::span<const std::byte> weights) {
    const OnnxModel model = decode_onnx(content, where);
    std::vector<std::string> names;
    std::vector<Owned<OrtValue>> owned;
    for (const OnnxTensor& tensor : model.initializers) {
        if (tensor.external_data.empty()) continue;
        const std::span<const std::byte> bytes = part_of(weights, tensor);
        // ONNX Runtime does not write to initializers, but its type is not const.
        // NOLINTBEGIN(cppcoreguidelines-pro-type-const-cast)
        owned.push_back(runtime.tensor(static_cast<ONNXTensorElementDataType>(tensor.data_type), tensor.shape,
                                       const_cast<std::byte*>(bytes.data()), bytes.size(), tensor.name));
        // NOLINTEND(cppcoreguidelines-pro-type-const-cast)
        names.emplace_back(tensor.name);
    }
    if (names.empty()) return;
    std::vector<const char*> name_pointers;
    std::vector<const OrtValue*> values;
    for (std::size_t i = 0; i < names.size(); i++) {
        name_pointers.push_back(names[i].c_str());
        values.push_back(owned[i].get());
    }
    // AddExternalInitializersFromFilesInMemory would copy the weights; these tensors are used in place.
    runtime.check(runtime.api().AddExternalInitializers(options, name_pointers.data(), values.data(), values.size()),
                  Kind::provider, where + ": its weights");
}

}  // namespace molkv
