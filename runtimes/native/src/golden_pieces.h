// How golden texts are cut into prompts (docs/bundle-format.md, "Golden vectors").
#pragma once

#include <cstdint>
#include <vector>

#include "model.h"

namespace molkv {

// Return the lengths of the first prompts: for each static graph of more than one position, longest first, the
// positions that fill it, and one token for the graph of one position. Empty in profile "cpu".
inline std::vector<std::int64_t> static_pieces(const Model& model) {
    std::vector<std::int64_t> pieces;
    for (auto graph = model.graphs().rbegin(); graph != model.graphs().rend(); ++graph) {
        if (graph->first > 1) pieces.push_back(graph->first + 1);
    }
    return pieces;
}

}  // namespace molkv
