// Fuzz target: ONNX files.
#include <cstddef>
#include <cstdint>
#include <string_view>

#include "error.h"
#include "graph_file.h"

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
    const std::string_view content(reinterpret_cast<const char*>(data), size);
    // The files with weights of the three profiles, so that the check reaches the nodes of each seed.
    for (const char* weights : {"model.onnx.data", "model.coreml.data", "model.nnapi.data"}) {
        try {
            molkv::check_graph_file(content, "model.onnx", weights, std::uint64_t{1} << 20U);
        } catch (const molkv::Error&) {  // a refusal is right for most inputs
        }
    }
    return 0;
}
