// The field `graphs` of a manifest (docs/bundle-format.md, "Graphs").
#pragma once

#include <vector>

#include "json.h"
#include "manifest.h"

namespace molkv {

// Parse the graphs of all profiles, in the order of the file, and check them against the model (check 6, without the
// profile that a user asks for). Throws a bundle error.
std::vector<Graph> parse_graphs(const JsonValue& graphs, const ModelConfig& model);

}  // namespace molkv
