// The weights of a graph, which are in the file `graphs.*.data`.
#pragma once

#include <cstddef>
#include <span>
#include <string>
#include <string_view>

#include "onnxruntime.h"

namespace molkv {

// Give the weights of a graph to a session in place. ONNX Runtime then opens no file.
// content: an ONNX file that passed the checks of Bundle::read_graph. where: its path. weights: the content of
// `graphs.*.data`, which must stay valid as long as the session.
void add_weights(const OnnxRuntime& runtime, OrtSessionOptions* options, std::string_view content,
                 const std::string& where, std::span<const std::byte> weights);

}  // namespace molkv
