// Writes of float32 and float16 numbers.
#include "host_numbers.h"

#include <algorithm>
#include <cstdint>
#include <cstring>

#include "record_decoder.h"

namespace molkv {

void store_numbers(std::span<const float> numbers, DType dtype, std::byte* into) {
    if (dtype == DType::float16)
        float_to_half(numbers, {reinterpret_cast<std::uint16_t*>(into), numbers.size()});
    else
        std::memcpy(into, numbers.data(), numbers.size_bytes());
}

void fill_numbers(std::byte* into, DType dtype, std::size_t first, std::size_t count, float value) {
    if (dtype == DType::float16) {
        std::uint16_t half = 0;
        float_to_half({&value, 1}, {&half, 1});
        std::fill_n(reinterpret_cast<std::uint16_t*>(into) + first, count, half);
    } else {
        std::fill_n(reinterpret_cast<float*>(into) + first, count, value);
    }
}

}  // namespace molkv
