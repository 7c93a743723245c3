// The inputs and outputs of graphs (docs/bundle-format.md), which follow from the model and the profile.
#pragma once

#include <string>
#include <vector>

#include "manifest.h"

namespace molkv {

// Return the inputs of a graph. `config` has the context length and the expert window of the graph; `length` is the
// number of positions of a call, 0 for profile "cpu".
std::vector<TensorInfo> graph_inputs(const ModelConfig& config, const Graph& graph, std::int64_t length);

// Return the outputs of a graph.
std::vector<TensorInfo> graph_outputs(const ModelConfig& config, const Graph& graph, std::int64_t length);

// Check that the inputs and outputs of a graph file in the manifest are these (check 10). `where` is the path of the
// file. Throws a bundle error.
void check_interface(const ModelConfig& config, const Graph& graph, const GraphFile& file, const std::string& where);

}  // namespace molkv
