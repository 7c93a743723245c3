// SHA-256 in portable C++, and CRC-32 by tables or by the instructions of arm64.
#include "digest.h"

#include <algorithm>
#include <bit>
#include <cstring>

#if defined(__ARM_FEATURE_CRC32)
#include <arm_acle.h>
#endif

namespace molkv {

namespace {

// The constants of FIPS 180-4, section 4.2.2.
constexpr std::array<std::uint32_t, 64> round_constants = {
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

}  // namespace

Sha256::Sha256()
    : state_{0x6a09e667, 0xbb67ae85, 0x3c6ef372, 0xa54ff53a, 0x510e527f, 0x9b05688c, 0x1f83d9ab, 0x5be0cd19},
      pending_{} {}

void Sha256::block(const std::byte* bytes) {
    std::array<std::uint32_t, 16> w{};
    for (std::size_t i = 0; i < 16; i++) w[i] = big_endian(bytes + 4 * i);
    auto [a, b, c, d, e, f, g, h] = state_;
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
    const std::array<std::uint32_t, 8> sums = {a, b, c, d, e, f, g, h};
    for (std::size_t i = 0; i < 8; i++) state_[i] += sums[i];
}

void Sha256::update(std::span<const std::byte> bytes) {
    const auto waiting = static_cast<std::size_t>(size_ % 64);
    size_ += bytes.size();
    if (waiting > 0) {
        const std::size_t more = std::min(64 - waiting, bytes.size());
        std::copy_n(bytes.begin(), more, pending_.begin() + static_cast<std::ptrdiff_t>(waiting));
        bytes = bytes.subspan(more);
        if (waiting + more < 64) return;
        block(pending_.data());
    }
    for (; bytes.size() >= 64; bytes = bytes.subspan(64)) block(bytes.data());
    std::copy(bytes.begin(), bytes.end(), pending_.begin());
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

#if defined(__ARM_FEATURE_CRC32)

std::uint32_t crc32(std::span<const std::byte> bytes, std::uint32_t before) {
    std::uint32_t crc = ~before;
    for (; bytes.size() >= 8; bytes = bytes.subspan(8)) {
        std::uint64_t word = 0;
        std::memcpy(&word, bytes.data(), 8);
        crc = __crc32d(crc, word);
    }
    for (const std::byte byte : bytes) crc = __crc32b(crc, std::to_integer<std::uint8_t>(byte));
    return ~crc;
}

#else

namespace {

using CrcTables = std::array<std::array<std::uint32_t, 256>, 8>;

// tables[n][byte]: the effect of a byte that is followed by n other bytes.
constexpr CrcTables make_crc_tables() {
    CrcTables tables{};
    for (std::uint32_t byte = 0; byte < 256; byte++) {
        std::uint32_t crc = byte;
        for (int bit = 0; bit < 8; bit++) crc = (crc >> 1U) ^ ((crc & 1U) != 0 ? 0xEDB88320U : 0U);
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

}  // namespace

std::uint32_t crc32(std::span<const std::byte> bytes, std::uint32_t before) {
    std::uint32_t crc = ~before;
    for (; bytes.size() >= 8; bytes = bytes.subspan(8)) {
        std::uint64_t word = 0;
        std::memcpy(&word, bytes.data(), 8);
        word ^= crc;
        crc = 0;
        for (std::size_t i = 0; i < 8; i++) crc ^= crc_tables[7 - i][(word >> (8 * i)) & 255U];
    }
    for (const std::byte byte : bytes) {
        crc = (crc >> 8U) ^ crc_tables[0][(crc ^ std::to_integer<std::uint32_t>(byte)) & 255U];
    }
    return ~crc;
}

#endif

}  // namespace molkv
