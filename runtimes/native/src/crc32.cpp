// CRC-32 by tables, by carry-less multiplication (x86-64) or by the CRC instructions (arm64).
#include <array>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <span>

#include "digest.h"
#include "digest_variants.h"

#if defined(__x86_64__)
#include <cpuid.h>
#include <immintrin.h>
#elif defined(__aarch64__) && (defined(__ARM_FEATURE_CRC32) || !defined(__clang__) || __clang_major__ >= 16)
#if defined(__ARM_FEATURE_CRC32)
#define MOLKV_TARGET_CRC  // The whole program is compiled for these instructions.
#else
#define MOLKV_TARGET_CRC [[gnu::target("+crc")]]
#endif
#include <arm_acle.h>
#if defined(__linux__)
#include <asm/hwcap.h>
#include <sys/auxv.h>
#elif defined(__APPLE__)
#include <sys/sysctl.h>
#endif
#endif

namespace molkv {

namespace digest {

namespace {

std::uint64_t load_word(const std::byte* bytes) {
    std::uint64_t word = 0;
    std::memcpy(&word, bytes, sizeof word);
    return word;
}

using CrcTables = std::array<std::array<std::uint32_t, 256>, 8>;

// tables[n][byte]: the effect of a byte that is followed by n other bytes.
constexpr CrcTables make_crc_tables() {
    CrcTables tables{};
    for (std::uint32_t byte = 0; byte < 256; byte++) {
        std::uint32_t crc = byte;
        for (int bit = 0; bit < 8; bit++) crc = (crc >> 1U) ^ ((crc & 1U) != 0 ? crc_polynomial : 0U);
        tables[0][byte] = crc;
    }
    for (std::size_t n = 1; n < 8; n++) {
        for (std::size_t byte = 0; byte < 256; byte++) {
            const std::uint32_t crc = tables[n - 1][byte];
            tables[n][byte] = (crc >> 8U) ^ tables[0][crc & 255U];
        }
    }
    return tables;
}

constexpr CrcTables crc_tables = make_crc_tables();

std::uint32_t crc_by_tables(std::uint32_t crc, std::span<const std::byte> bytes) {
    for (; bytes.size() >= 8; bytes = bytes.subspan(8)) {
        const std::uint64_t word = load_word(bytes.data()) ^ crc;
        crc = 0;
        for (std::size_t i = 0; i < 8; i++) crc ^= crc_tables[7 - i][(word >> (8 * i)) & 255U];
    }
    for (const std::byte byte : bytes) {
        crc = (crc >> 8U) ^ crc_tables[0][(crc ^ std::to_integer<std::uint32_t>(byte)) & 255U];
    }
    return crc;
}

#if defined(__x86_64__)

// A message is a polynomial: the lowest bit of its first byte has the highest power of x. So 16 bytes, loaded as a
// register, are low * x^64 + high, where `low` is the lower half. A message S that is followed by D bits N is
// S * x^D + N, and a CRC depends only on the remainder mod P. So S * x^D may be replaced by the shorter sum
//     low * (x^(D + 64) mod P) + high * (x^D mod P).
// The product of two halves in this order of bits has a further factor x: its 127 bits begin at bit 0, not at bit 1.
// So the constants are x^(D + 63) mod P and x^(D - 1) mod P. A remainder has 32 bits, the upper ones of its half.
struct FoldConstants {
    std::int64_t low;
    std::int64_t high;
};

constexpr FoldConstants fold_over(std::size_t bits) {
    return {static_cast<std::int64_t>(std::uint64_t{power_of_x(bits + 63)} << 32U),
            static_cast<std::int64_t>(std::uint64_t{power_of_x(bits - 1)} << 32U)};
}

constexpr FoldConstants fold_over_16_bytes = fold_over(128);
constexpr FoldConstants fold_over_64_bytes = fold_over(512);

__m128i load_register(const std::byte* bytes) {
    return _mm_loadu_si128(reinterpret_cast<const __m128i*>(bytes));
}

// Return `sum`, moved by the distance of `constants`, plus `next`.
[[gnu::target("pclmul")]] inline __m128i fold(__m128i sum, __m128i constants, __m128i next) {
    const __m128i low = _mm_clmulepi64_si128(sum, constants, 0x00);
    const __m128i high = _mm_clmulepi64_si128(sum, constants, 0x11);
    return _mm_xor_si128(_mm_xor_si128(low, high), next);
}

[[gnu::target("pclmul")]] std::uint32_t crc_by_pclmul(std::uint32_t crc, std::span<const std::byte> bytes) {
    if (bytes.size() < 64) return crc_by_tables(crc, bytes);
    // Four sums, each of every fourth 16 bytes, hide the latency of the multiplication.
    const std::byte* place = bytes.data();
    __m128i first = _mm_xor_si128(load_register(place), _mm_cvtsi32_si128(static_cast<int>(crc)));
    __m128i second = load_register(place + 16);
    __m128i third = load_register(place + 32);
    __m128i fourth = load_register(place + 48);
    const __m128i over_64 = _mm_set_epi64x(fold_over_64_bytes.high, fold_over_64_bytes.low);
    for (bytes = bytes.subspan(64); bytes.size() >= 64; bytes = bytes.subspan(64)) {
        place = bytes.data();
        first = fold(first, over_64, load_register(place));
        second = fold(second, over_64, load_register(place + 16));
        third = fold(third, over_64, load_register(place + 32));
        fourth = fold(fourth, over_64, load_register(place + 48));
    }
    const __m128i over_16 = _mm_set_epi64x(fold_over_16_bytes.high, fold_over_16_bytes.low);
    __m128i sum = fold(fold(fold(first, over_16, second), over_16, third), over_16, fourth);
    for (; bytes.size() >= 16; bytes = bytes.subspan(16)) sum = fold(sum, over_16, load_register(bytes.data()));
    // The sum is a message of 16 bytes. It contains the first register, so its own register begins with 0.
    std::array<std::byte, 16> rest{};
    _mm_storeu_si128(reinterpret_cast<__m128i*>(rest.data()), sum);
    return crc_by_tables(crc_by_tables(0, rest), bytes);
}

bool has_pclmul() {
    unsigned a = 0;
    unsigned b = 0;
    unsigned c = 0;
    unsigned d = 0;
    return __get_cpuid(1, &a, &b, &c, &d) != 0 && (c & static_cast<unsigned>(bit_PCLMUL)) != 0;
}

#elif defined(MOLKV_TARGET_CRC)

// Return the product of two remainders mod P.
std::uint32_t multiply(std::uint32_t left, std::uint32_t right) {
    std::uint32_t product = 0;
    for (int power = 0; power < 32; power++) {
        product ^= (left & 0x80000000U) != 0 ? right : 0U;
        left <<= 1U;
        right = (right >> 1U) ^ ((right & 1U) != 0 ? crc_polynomial : 0U);
    }
    return product;
}

// The bytes of one of three streams. A CRC instruction has a latency of two or three cycles, so three registers that do
// not depend on each other are about three times as fast as one.
constexpr std::size_t stream_size = 2048;
constexpr std::uint32_t over_one_stream = power_of_x(8 * stream_size);
constexpr std::uint32_t over_two_streams = power_of_x(16 * stream_size);

MOLKV_TARGET_CRC std::uint32_t crc_by_instructions(std::uint32_t crc, std::span<const std::byte> bytes) {
    for (; bytes.size() >= 3 * stream_size; bytes = bytes.subspan(3 * stream_size)) {
        const std::byte* place = bytes.data();
        std::uint32_t second = 0;
        std::uint32_t third = 0;
        for (std::size_t i = 0; i < stream_size; i += 8) {
            crc = __crc32d(crc, load_word(place + i));
            second = __crc32d(second, load_word(place + stream_size + i));
            third = __crc32d(third, load_word(place + 2 * stream_size + i));
        }
        // A register that is followed by n zero bytes is multiplied by x^(8 n) mod P.
        crc = multiply(crc, over_two_streams) ^ multiply(second, over_one_stream) ^ third;
    }
    for (; bytes.size() >= 8; bytes = bytes.subspan(8)) crc = __crc32d(crc, load_word(bytes.data()));
    for (const std::byte byte : bytes) crc = __crc32b(crc, std::to_integer<std::uint8_t>(byte));
    return crc;
}

bool has_crc_instructions() {
#if defined(__ARM_FEATURE_CRC32)
    return true;
#elif defined(__linux__)
    return (getauxval(AT_HWCAP) & HWCAP_CRC32) != 0;
#elif defined(__APPLE__)
    int found = 0;
    std::size_t size = sizeof found;
    return sysctlbyname("hw.optional.armv8_crc32", &found, &size, nullptr, 0) == 0 && found != 0;
#else
    return false;
#endif
}

#endif

}  // namespace

std::span<const Variant<CrcFunction>> crc32_variants() {
#if defined(__x86_64__)
    static constexpr std::array variants = {Variant<CrcFunction>{"pclmul", crc_by_pclmul},
                                            Variant<CrcFunction>{"portable", crc_by_tables}};
    return std::span(variants).subspan(has_pclmul() ? 0 : 1);
#elif defined(MOLKV_TARGET_CRC)
    static constexpr std::array variants = {Variant<CrcFunction>{"crc", crc_by_instructions},
                                            Variant<CrcFunction>{"portable", crc_by_tables}};
    return std::span(variants).subspan(has_crc_instructions() ? 0 : 1);
#else
    static constexpr std::array variants = {Variant<CrcFunction>{"portable", crc_by_tables}};
    return variants;
#endif
}

}  // namespace digest

std::uint32_t crc32(std::span<const std::byte> bytes, std::uint32_t before) {
    static const digest::CrcFunction run = digest::crc32_variants().front().run;
    return ~run(~before, bytes);
}

}  // namespace molkv
