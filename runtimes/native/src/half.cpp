// float16 <-> float32: with integer arithmetic, with F16C on x86-64, and with NEON on arm64.
#include "half.h"

#include <bit>
#include <cstddef>

#if defined(__x86_64__)
#include <immintrin.h>
#elif defined(__aarch64__)
#include <arm_neon.h>
#endif

namespace molkv {

namespace {

// float16 has 1 + 5 + 10 bits, float32 has 1 + 8 + 23.
constexpr std::uint32_t half_infinity = 0x7c00;
constexpr std::uint32_t half_quiet = 0x0200;
constexpr std::uint32_t float_infinity = 0x7f800000;
constexpr std::uint32_t float_quiet = 0x00400000;
constexpr unsigned shift = 13;              // between the mantissas
constexpr std::uint32_t rebias = 127 - 15;  // between the exponents

// Return `number` / 2^bits, rounded to nearest, ties to even. bits: 1 to 31.
std::uint32_t rounded_shift(std::uint32_t number, unsigned bits) {
    const std::uint32_t half = 1U << (bits - 1);
    const std::uint32_t odd = (number >> bits) & 1U;
    return (number + half - 1 + odd) >> bits;
}

#if defined(__x86_64__)

// Every processor with AVX2 has F16C. clang 14 cannot be asked for F16C itself.
bool has_f16c() {
    static const bool found = [] {
        __builtin_cpu_init();
        return static_cast<bool>(__builtin_cpu_supports("avx2"));
    }();
    return found;
}

// Convert the first numbers, in groups of 8. Return how many were converted.
__attribute__((target("avx,f16c"))) std::size_t wide(const std::uint16_t* halves, float* floats, std::size_t count) {
    std::size_t i = 0;
    for (; i + 8 <= count; i += 8) {
        const __m128i group = _mm_loadu_si128(reinterpret_cast<const __m128i*>(halves + i));
        _mm256_storeu_ps(floats + i, _mm256_cvtph_ps(group));
    }
    return i;
}

__attribute__((target("avx,f16c"))) std::size_t wide(const float* floats, std::uint16_t* halves, std::size_t count) {
    std::size_t i = 0;
    for (; i + 8 <= count; i += 8) {
        const __m128i group = _mm256_cvtps_ph(_mm256_loadu_ps(floats + i), _MM_FROUND_TO_NEAREST_INT);
        _mm_storeu_si128(reinterpret_cast<__m128i*>(halves + i), group);
    }
    return i;
}

template <typename From, typename To>
std::size_t convert_groups(const From* from, To* to, std::size_t count) {
    return has_f16c() ? wide(from, to, count) : 0;
}

#elif defined(__aarch64__)

std::size_t convert_groups(const std::uint16_t* halves, float* floats, std::size_t count) {
    std::size_t i = 0;
    for (; i + 4 <= count; i += 4) vst1q_f32(floats + i, vcvt_f32_f16(vreinterpret_f16_u16(vld1_u16(halves + i))));
    return i;
}

std::size_t convert_groups(const float* floats, std::uint16_t* halves, std::size_t count) {
    std::size_t i = 0;
    for (; i + 4 <= count; i += 4) vst1_u16(halves + i, vreinterpret_u16_f16(vcvt_f16_f32(vld1q_f32(floats + i))));
    return i;
}

#else

template <typename From, typename To>
std::size_t convert_groups(const From* /*from*/, To* /*to*/, std::size_t /*count*/) {
    return 0;
}

#endif

}  // namespace

float half_to_float(std::uint16_t half) {
    const std::uint32_t sign = (half & 0x8000U) << 16U;
    const std::uint32_t magnitude = half & 0x7fffU;
    if (magnitude > half_infinity)
        return std::bit_cast<float>(sign | float_infinity | float_quiet | magnitude << shift);
    if (magnitude == half_infinity) return std::bit_cast<float>(sign | float_infinity);
    if (magnitude >= 0x0400) return std::bit_cast<float>(sign | ((magnitude << shift) + (rebias << 23U)));
    if (magnitude == 0) return std::bit_cast<float>(sign);
    // A subnormal: magnitude * 2^-24. Its highest bit becomes the implicit bit of a float32.
    const auto lifted = static_cast<unsigned>(std::countl_zero(magnitude)) - 8;  // moves the highest bit to bit 23
    const std::uint32_t exponent = 125 - lifted;                                 // bit 23 of the mantissa adds 1
    return std::bit_cast<float>(sign | ((exponent << 23U) + (magnitude << lifted)));
}

std::uint16_t float_to_half(float number) {
    const auto bits = std::bit_cast<std::uint32_t>(number);
    const std::uint32_t sign = (bits >> 16U) & 0x8000U;
    const std::uint32_t magnitude = bits & 0x7fffffffU;
    std::uint32_t result = 0;
    if (magnitude > float_infinity) {
        result = half_infinity | half_quiet | ((magnitude >> shift) & 0x03ffU);
    } else if (magnitude >= 0x47800000) {  // 2^16
        result = half_infinity;
    } else if (magnitude >= 0x38800000) {  // 2^-14; a carry from rounding becomes the next exponent, or infinity
        result = rounded_shift(magnitude - (rebias << 23U), shift);
    } else if (magnitude >= 0x33000000) {  // 2^-25; the result is subnormal, a multiple of 2^-24
        const std::uint32_t mantissa = (magnitude & 0x007fffffU) | 0x00800000U;
        result = rounded_shift(mantissa, 126 - (magnitude >> 23U));
    }
    return static_cast<std::uint16_t>(sign | result);
}

void half_to_float(std::span<const std::uint16_t> halves, std::span<float> floats) {
    for (std::size_t i = convert_groups(halves.data(), floats.data(), halves.size()); i < halves.size(); i++) {
        floats[i] = half_to_float(halves[i]);
    }
}

void float_to_half(std::span<const float> floats, std::span<std::uint16_t> halves) {
    for (std::size_t i = convert_groups(floats.data(), halves.data(), floats.size()); i < floats.size(); i++) {
        halves[i] = float_to_half(floats[i]);
    }
}

}  // namespace molkv
