// How golden texts are cut into prompts (docs/bundle-format.md, "Golden vectors").
#pragma once

#include <algorithm>
#include <cstdint>
#include <vector>

#include "model.h"

namespace molkv {

// Return the lengths of the first prompts: for each static graph of more than one position, longest first, the
// positions that fill it, and one token for the graph of one position. Empty in profile "cpu".
inline std::vector<std::int64_t> static_pieces(const Model& model) {
    std::vector<std::int64_t> pieces;
    for (const auto& [length, graph] : model.graphs()) {
        if (length > 1) pieces.push_back(length + 1);
    }
    std::reverse(pieces.begin(), pieces.end());
    return pieces;
}

}  // namespace molkv
