// Compares the conversions of float16 with a definition by powers of two: all halves, and the floats around them.
#include <bit>
#include <cmath>
#include <limits>
#include <vector>

#include "check.h"
#include "half.h"

namespace test = molkv::test;

namespace {

// The value of a float16 that is no NaN, as IEEE 754 defines it.
double value(unsigned half) {
    const int exponent = static_cast<int>((half >> 10U) & 31U);
    const double mantissa = half & 1023U;
    const double sign = (half & 0x8000U) != 0 ? -1 : 1;
    if (exponent == 31) return sign * std::numeric_limits<double>::infinity();
    return sign * (exponent == 0 ? std::ldexp(mantissa, -24) : std::ldexp(1024 + mantissa, exponent - 25));
}

bool is_nan(unsigned half) {
    return (half & 0x7fffU) > 0x7c00U;
}

// The nearest float16 of a finite number; of two, the one with an even mantissa.
unsigned nearest(float number) {
    const unsigned sign = std::signbit(number) ? 0x8000 : 0;
    const double size = std::abs(static_cast<double>(number));
    if (size >= 65520) return sign | 0x7c00U;  // the middle between 65504, the largest, and 2^16
    unsigned low = 0;
    unsigned high = 0x7bff;
    while (low + 1 < high) {  // value(low) <= size
        const unsigned middle = (low + high) / 2;
        (value(middle) <= size ? low : high) = middle;
    }
    const double below = size - value(low);
    const double above = value(high) - size;
    const bool up = above < below || (above == below && high % 2 == 0);
    return sign | (up ? high : low);
}

void check_to_float() {
    std::vector<std::uint16_t> halves(65536);
    for (unsigned half = 0; half < 65536; half++) halves[half] = static_cast<std::uint16_t>(half);
    std::vector<float> floats(halves.size());
    molkv::half_to_float(halves, floats);
    int wrong = 0;
    for (unsigned half = 0; half < 65536; half++) {
        const auto bits = std::bit_cast<std::uint32_t>(floats[half]);
        const auto expected = is_nan(half) ? (half & 0x8000U) << 16U | 0x7fc00000U | (half & 1023U) << 13U
                                           : std::bit_cast<std::uint32_t>(static_cast<float>(value(half)));
        const auto single = std::bit_cast<std::uint32_t>(molkv::half_to_float(halves[half]));
        if (bits != expected || single != expected) wrong++;
    }
    test::equal(wrong, 0, "float16 to float32: number of wrong results");
}

void check_to_half(const std::vector<float>& floats) {
    std::vector<std::uint16_t> halves(floats.size());
    molkv::float_to_half(floats, halves);
    int wrong = 0;
    for (std::size_t i = 0; i < floats.size(); i++) {
        const auto bits = std::bit_cast<std::uint32_t>(floats[i]);
        const unsigned expected =
            std::isnan(floats[i]) ? (bits >> 16U & 0x8000U) | 0x7e00U | (bits >> 13U & 1023U) : nearest(floats[i]);
        const bool right = halves[i] == expected && molkv::float_to_half(floats[i]) == expected;
        if (!right && wrong++ == 0) std::cerr << "first wrong: " << std::hexfloat << floats[i] << "\n";
    }
    test::equal(wrong, 0, "float32 to float16: number of wrong results");
}

// Each half, the middle to the next one, and the floats directly beside both.
std::vector<float> interesting_floats() {
    std::vector<float> floats;
    const auto add = [&](float number) {
        const auto bits = std::bit_cast<std::uint32_t>(number);
        for (const std::uint32_t one : {bits, bits + 1, bits - 1}) floats.push_back(std::bit_cast<float>(one));
    };
    for (unsigned half = 0; half < 65536; half++) {
        if (is_nan(half)) continue;
        add(static_cast<float>(value(half)));
        if ((half & 0x7fffU) < 0x7bffU) add(static_cast<float>((value(half) + value(half + 1)) / 2));
    }
    for (const float number : {65520.0F, 65519.996F, 1e10F, 3e38F, 1e-30F, 1e-40F, 1.4e-45F}) {
        add(number);
        add(-number);
    }
    for (std::uint32_t bits = 0x7f800001; bits > 0x7f800000 && bits < 0x80000000; bits += 0x3fff) {  // NaN
        floats.push_back(std::bit_cast<float>(bits));
        floats.push_back(std::bit_cast<float>(bits | 0x80000000U));
    }
    std::uint32_t state = 1;
    for (int i = 0; i < 200000; i++) {
        state = state * 1664525U + 1013904223U;
        floats.push_back(std::bit_cast<float>(state));
    }
    return floats;
}

}  // namespace

int main() {
    check_to_float();
    check_to_half(interesting_floats());

    // Sizes that are no multiple of a group, at addresses that are no multiple of a vector.
    const std::vector<std::uint16_t> halves(40, 0x3c00);
    for (std::size_t size = 0; size < 20; size++) {
        std::vector<float> floats(21, 7.0F);
        molkv::half_to_float(std::span(halves).subspan(1, size), std::span(floats).first(size));
        test::that(size == 0 || floats[size - 1] == 1.0F, "the last number is converted");
        test::equal(floats[size], 7.0F, "the number after the last one");
    }
    return test::finish();
}
