// Checks of an ONNX file before ONNX Runtime reads it, since some invalid files crash ONNX Runtime.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>

namespace molkv {

// Check that a graph holds only what docs/bundle-format.md, "What a graph may hold", allows (check 14).
// content: the ONNX file. where: its path. data: the name of the file with its weights. data_size: bytes of this file.
// Throws a bundle error.
void check_graph_file(std::string_view content, const std::string& where, const std::string& data,
                      std::uint64_t data_size);

}  // namespace molkv
