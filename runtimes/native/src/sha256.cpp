// SHA-256 in portable C++, or by the SHA instructions of x86-64 and arm64.
#include <algorithm>
#include <array>
#include <bit>
#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <string_view>

#include "digest.h"
#include "digest_variants.h"

#if defined(__x86_64__)
#define MOLKV_TARGET_SHA [[gnu::target("sha,sse4.1")]]
#include <cpuid.h>
#include <immintrin.h>
#elif defined(__aarch64__) && (defined(__ARM_FEATURE_SHA2) || !defined(__clang__) || __clang_major__ >= 16)
#if defined(__ARM_FEATURE_SHA2)
#define MOLKV_TARGET_SHA  // The whole program is compiled for these instructions.
#else
#define MOLKV_TARGET_SHA [[gnu::target("+crypto")]]
#endif
#include <arm_neon.h>
#if defined(__linux__)
#include <asm/hwcap.h>
#include <sys/auxv.h>
#endif
#endif

namespace molkv {

namespace digest {

namespace {

using State = std::array<std::uint32_t, 8>;

// The constants of FIPS 180-4, section 4.2.2.
alignas(16) constexpr std::array<std::uint32_t, 64> round_constants = {
    0x428a2f98, 0x71374491, 0xb5c0fbcf, 0xe9b5dba5, 0x3956c25b, 0x59f111f1, 0x923f82a4, 0xab1c5ed5,
    0xd807aa98, 0x12835b01, 0x243185be, 0x550c7dc3, 0x72be5d74, 0x80deb1fe, 0x9bdc06a7, 0xc19bf174,
    0xe49b69c1, 0xefbe4786, 0x0fc19dc6, 0x240ca1cc, 0x2de92c6f, 0x4a7484aa, 0x5cb0a9dc, 0x76f988da,
    0x983e5152, 0xa831c66d, 0xb00327c8, 0xbf597fc7, 0xc6e00bf3, 0xd5a79147, 0x06ca6351, 0x14292967,
    0x27b70a85, 0x2e1b2138, 0x4d2c6dfc, 0x53380d13, 0x650a7354, 0x766a0abb, 0x81c2c92e, 0x92722c85,
    0xa2bfe8a1, 0xa81a664b, 0xc24b8b70, 0xc76c51a3, 0xd192e819, 0xd6990624, 0xf40e3585, 0x106aa070,
    0x19a4c116, 0x1e376c08, 0x2748774c, 0x34b0bcb5, 0x391c0cb3, 0x4ed8aa4a, 0x5b9cca4f, 0x682e6ff3,
    0x748f82ee, 0x78a5636f, 0x84c87814, 0x8cc70208, 0x90befffa, 0xa4506ceb, 0xbef9a3f7, 0xc67178f2};

std::uint32_t big_endian(const std::byte* bytes) {
    const auto part = [bytes](std::size_t place) { return std::to_integer<std::uint32_t>(bytes[place]); };
    return (part(0) << 24U) | (part(1) << 16U) | (part(2) << 8U) | part(3);
}

// One round. The caller rotates the names of the eight variables instead of moving their values.
inline void sha_round(std::uint32_t a, std::uint32_t b, std::uint32_t c, std::uint32_t& d, std::uint32_t e,
                      std::uint32_t f, std::uint32_t g, std::uint32_t& h, std::uint32_t input) {
    const std::uint32_t choice = g ^ (e & (f ^ g));
    const std::uint32_t majority = (a & b) | (c & (a | b));
    h += (std::rotr(e, 6) ^ std::rotr(e, 11) ^ std::rotr(e, 25)) + choice + input;
    d += h;
    h += (std::rotr(a, 2) ^ std::rotr(a, 13) ^ std::rotr(a, 22)) + majority;
}

// Replace 16 words of the message schedule by the next 16.
inline void extend(std::array<std::uint32_t, 16>& words) {
    for (std::size_t i = 0; i < 16; i++) {
        const std::uint32_t early = words[(i + 1) % 16];
        const std::uint32_t late = words[(i + 14) % 16];
        words[i] += (std::rotr(early, 7) ^ std::rotr(early, 18) ^ (early >> 3U)) + words[(i + 9) % 16] +
                    (std::rotr(late, 17) ^ std::rotr(late, 19) ^ (late >> 10U));
    }
}

void update_portably(State& state, std::span<const std::byte> blocks) {
    for (; !blocks.empty(); blocks = blocks.subspan(64)) {
        std::array<std::uint32_t, 16> w{};
        for (std::size_t i = 0; i < 16; i++) w[i] = big_endian(blocks.data() + 4 * i);
        auto [a, b, c, d, e, f, g, h] = state;
        for (std::size_t start = 0; start < 64; start += 16) {
            if (start > 0) extend(w);
            for (std::size_t i = 0; i < 16; i += 8) {
                const std::uint32_t* k = &round_constants[start + i];
                sha_round(a, b, c, d, e, f, g, h, k[0] + w[i]);
                sha_round(h, a, b, c, d, e, f, g, k[1] + w[i + 1]);
                sha_round(g, h, a, b, c, d, e, f, k[2] + w[i + 2]);
                sha_round(f, g, h, a, b, c, d, e, k[3] + w[i + 3]);
                sha_round(e, f, g, h, a, b, c, d, k[4] + w[i + 4]);
                sha_round(d, e, f, g, h, a, b, c, k[5] + w[i + 5]);
                sha_round(c, d, e, f, g, h, a, b, k[6] + w[i + 6]);
                sha_round(b, c, d, e, f, g, h, a, k[7] + w[i + 7]);
            }
        }
        const State sums = {a, b, c, d, e, f, g, h};
        for (std::size_t i = 0; i < 8; i++) state[i] += sums[i];
    }
}

#if defined(__x86_64__)

// The two halves of the state. The instructions want the order a, b, e, f and c, d, g, h, from the highest lane down.
struct Halves {
    __m128i abef;
    __m128i cdgh;
};

// Load four words of a block.
MOLKV_TARGET_SHA inline __m128i load_words(const std::byte* bytes) {
    const __m128i swap = _mm_set_epi64x(0x0c0d0e0f08090a0b, 0x0405060700010203);
    return _mm_shuffle_epi8(_mm_loadu_si128(reinterpret_cast<const __m128i*>(bytes)), swap);
}

// Return the four words of the message schedule after w, x, y and z.
MOLKV_TARGET_SHA inline __m128i next_words(__m128i w, __m128i x, __m128i y, __m128i z) {
    const __m128i sum = _mm_add_epi32(_mm_sha256msg1_epu32(w, x), _mm_alignr_epi8(z, y, 4));
    return _mm_sha256msg2_epu32(sum, z);
}

// Four rounds. After each two rounds, the old a, b, e, f are the new c, d, g, h.
MOLKV_TARGET_SHA inline void four_rounds(Halves& halves, __m128i words, const std::uint32_t* constants) {
    const __m128i input = _mm_add_epi32(words, _mm_load_si128(reinterpret_cast<const __m128i*>(constants)));
    halves.cdgh = _mm_sha256rnds2_epu32(halves.cdgh, halves.abef, input);
    halves.abef = _mm_sha256rnds2_epu32(halves.abef, halves.cdgh, _mm_shuffle_epi32(input, 0x0E));
}

MOLKV_TARGET_SHA inline Halves load_state(const State& state) {
    const auto word = [&state](std::size_t i) { return static_cast<int>(state[i]); };
    return {_mm_set_epi32(word(0), word(1), word(4), word(5)), _mm_set_epi32(word(2), word(3), word(6), word(7))};
}

MOLKV_TARGET_SHA inline void store_state(Halves halves, State& state) {
    alignas(16) State lanes{};  // f, e, b, a, h, g, d, c
    _mm_store_si128(reinterpret_cast<__m128i*>(lanes.data()), halves.abef);
    _mm_store_si128(reinterpret_cast<__m128i*>(lanes.data() + 4), halves.cdgh);
    state = {lanes[3], lanes[2], lanes[7], lanes[6], lanes[1], lanes[0], lanes[5], lanes[4]};
}

MOLKV_TARGET_SHA inline Halves sum(Halves a, Halves b) {
    return {_mm_add_epi32(a.abef, b.abef), _mm_add_epi32(a.cdgh, b.cdgh)};
}

bool has_sha_instructions() {
    unsigned a = 0;
    unsigned b = 0;
    unsigned c = 0;
    unsigned d = 0;
    if (__get_cpuid(1, &a, &b, &c, &d) == 0 || (c & static_cast<unsigned>(bit_SSE4_1)) == 0) return false;
    return __get_cpuid_count(7, 0, &a, &b, &c, &d) != 0 && (b & static_cast<unsigned>(bit_SHA)) != 0;
}

#elif defined(MOLKV_TARGET_SHA)

// The two halves of the state: a, b, c, d and e, f, g, h.
struct Halves {
    uint32x4_t abcd;
    uint32x4_t efgh;
};

// Load four words of a block.
MOLKV_TARGET_SHA inline uint32x4_t load_words(const std::byte* bytes) {
    return vreinterpretq_u32_u8(vrev32q_u8(vld1q_u8(reinterpret_cast<const std::uint8_t*>(bytes))));
}

// Return the four words of the message schedule after w, x, y and z.
MOLKV_TARGET_SHA inline uint32x4_t next_words(uint32x4_t w, uint32x4_t x, uint32x4_t y, uint32x4_t z) {
    return vsha256su1q_u32(vsha256su0q_u32(w, x), y, z);
}

MOLKV_TARGET_SHA inline void four_rounds(Halves& halves, uint32x4_t words, const std::uint32_t* constants) {
    const uint32x4_t input = vaddq_u32(words, vld1q_u32(constants));
    const uint32x4_t abcd = halves.abcd;
    halves.abcd = vsha256hq_u32(abcd, halves.efgh, input);
    halves.efgh = vsha256h2q_u32(halves.efgh, abcd, input);
}

MOLKV_TARGET_SHA inline Halves load_state(const State& state) {
    return {vld1q_u32(state.data()), vld1q_u32(state.data() + 4)};
}

MOLKV_TARGET_SHA inline void store_state(Halves halves, State& state) {
    vst1q_u32(state.data(), halves.abcd);
    vst1q_u32(state.data() + 4, halves.efgh);
}

MOLKV_TARGET_SHA inline Halves sum(Halves a, Halves b) {
    return {vaddq_u32(a.abcd, b.abcd), vaddq_u32(a.efgh, b.efgh)};
}

bool has_sha_instructions() {
#if defined(__ARM_FEATURE_SHA2)
    return true;
#elif defined(__linux__)
    return (getauxval(AT_HWCAP) & HWCAP_SHA2) != 0;
#else
    return false;  // Apple's compilers define __ARM_FEATURE_SHA2.
#endif
}

#endif

#if defined(MOLKV_TARGET_SHA)

MOLKV_TARGET_SHA void update_by_instructions(State& state, std::span<const std::byte> blocks) {
    Halves sums = load_state(state);
    for (; !blocks.empty(); blocks = blocks.subspan(64)) {
        Halves halves = sums;
        auto w = load_words(blocks.data());
        auto x = load_words(blocks.data() + 16);
        auto y = load_words(blocks.data() + 32);
        auto z = load_words(blocks.data() + 48);
        for (std::size_t start = 0; start < 64; start += 16) {
            if (start > 0) {
                w = next_words(w, x, y, z);
                x = next_words(x, y, z, w);
                y = next_words(y, z, w, x);
                z = next_words(z, w, x, y);
            }
            four_rounds(halves, w, &round_constants[start]);
            four_rounds(halves, x, &round_constants[start + 4]);
            four_rounds(halves, y, &round_constants[start + 8]);
            four_rounds(halves, z, &round_constants[start + 12]);
        }
        sums = sum(sums, halves);
    }
    store_state(sums, state);
}

#endif

}  // namespace

std::span<const Variant<Sha256Function>> sha256_variants() {
#if defined(MOLKV_TARGET_SHA)
    static constexpr std::array variants = {Variant<Sha256Function>{"sha", update_by_instructions},
                                            Variant<Sha256Function>{"portable", update_portably}};
    return std::span(variants).subspan(has_sha_instructions() ? 0 : 1);
#else
    static constexpr std::array variants = {Variant<Sha256Function>{"portable", update_portably}};
    return variants;
#endif
}

}  // namespace digest

Sha256::Sha256()
    : state_{0x6a09e667, 0xbb67ae85, 0x3c6ef372, 0xa54ff53a, 0x510e527f, 0x9b05688c, 0x1f83d9ab, 0x5be0cd19} {}

void Sha256::update(std::span<const std::byte> bytes) {
    static const digest::Sha256Function run = digest::sha256_variants().front().run;
    const auto waiting = static_cast<std::size_t>(size_ % 64);
    size_ += bytes.size();
    if (waiting > 0) {
        const std::size_t more = std::min(64 - waiting, bytes.size());
        std::copy_n(bytes.begin(), more, pending_.begin() + static_cast<std::ptrdiff_t>(waiting));
        bytes = bytes.subspan(more);
        if (waiting + more < 64) return;
        run(state_, pending_);
    }
    const std::size_t whole = bytes.size() - bytes.size() % 64;
    run(state_, bytes.first(whole));
    std::copy(bytes.begin() + static_cast<std::ptrdiff_t>(whole), bytes.end(), pending_.begin());
}

std::string Sha256::hex() {
    constexpr std::string_view digits = "0123456789abcdef";
    const std::uint64_t bits = size_ * 8;
    std::array<std::byte, 72> padding{std::byte{0x80}};
    const auto zeros = static_cast<std::size_t>((119 - size_ % 64) % 64);  // up to byte 56 of a block
    for (std::size_t i = 0; i < 8; i++) padding[1 + zeros + i] = static_cast<std::byte>(bits >> (56 - 8 * i));
    update(std::span(padding).first(zeros + 9));
    std::string text;
    for (const std::uint32_t word : state_) {
        for (int shift = 28; shift >= 0; shift -= 4) text += digits[(word >> static_cast<unsigned>(shift)) & 15U];
    }
    return text;
}

}  // namespace molkv
