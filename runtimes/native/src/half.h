// The conversion between float16 (IEEE 754 binary16, as its bits) and float32.
#pragma once

#include <cstdint>
#include <span>

namespace molkv {

// Convert all numbers; both spans have the same size. Uses the instructions of the processor where it has some.
// float_to_half rounds to nearest, ties to even. A NaN stays a NaN, becomes quiet, and keeps the upper bits of its
// payload.
void half_to_float(std::span<const std::uint16_t> halves, std::span<float> floats);
void float_to_half(std::span<const float> floats, std::span<std::uint16_t> halves);

// The same for one number, with integer arithmetic only.
float half_to_float(std::uint16_t half);
std::uint16_t float_to_half(float number);

}  // namespace molkv
