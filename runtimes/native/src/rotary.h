// The rotation of vectors by their positions (docs/bundle-format.md, "Rotation").
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

#include "zeroed_array.h"

namespace molkv {

// Cosines and sines of the positions 0 to `length` - 1, for vectors of an even size. Rows are computed when a position
// is first used, so that a long context costs no time at the start.
class RotaryTable {
 public:
    RotaryTable(std::int64_t length, std::int64_t size, double theta);

    // Return the cosines or sines [size / 2] of a position. The position must be below `length`.
    [[nodiscard]] std::span<const float> cosines(std::int64_t position);
    [[nodiscard]] std::span<const float> sines(std::int64_t position);
    // Rotate rows [n, size] in place, all by the same position.
    void rotate(std::span<float> rows, std::int64_t position);

 private:
    void compute_to(std::size_t position);
    [[nodiscard]] std::size_t half() const { return frequencies_.size(); }
    std::vector<double> frequencies_;  // [size / 2]
    ZeroedArray<float> cosines_;       // [length, size / 2]
    ZeroedArray<float> sines_;
    std::size_t computed_ = 0;  // number of computed rows
};

}  // namespace molkv
