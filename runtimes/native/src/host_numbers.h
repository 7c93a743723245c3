// Numbers in the inputs of a graph, which are float32 or float16.
#pragma once

#include <cstddef>
#include <span>

#include "manifest.h"

namespace molkv {

// Write float32 numbers as `dtype`, float32 or float16.
void store_numbers(std::span<const float> numbers, DType dtype, std::byte* into);
// Write `count` equal numbers, from number `first` of `into` on.
void fill_numbers(std::byte* into, DType dtype, std::size_t first, std::size_t count, float value);

}  // namespace molkv
