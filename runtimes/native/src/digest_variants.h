// The variants of CRC-32 and SHA-256: portable C++, and the instructions of x86-64 and arm64. The functions of digest.h
// use the first variant of each list. The tests compare all of them.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <span>
#include <string_view>

namespace molkv::digest {

// Return the CRC register after more bytes. A register is a CRC-32 before its last inversion.
using CrcFunction = std::uint32_t (*)(std::uint32_t crc, std::span<const std::byte> bytes);

// Update the state of a SHA-256 with whole blocks of 64 bytes.
using Sha256Function = void (*)(std::array<std::uint32_t, 8>& state, std::span<const std::byte> blocks);

template <typename Function>
struct Variant {
    std::string_view name;
    Function run;
};

// Return the variants that this processor can run, the fastest first. The last one is "portable".
std::span<const Variant<CrcFunction>> crc32_variants();
std::span<const Variant<Sha256Function>> sha256_variants();

// The polynomial P of CRC-32 without its term x^32. Bit 31 is the coefficient of x^0, and bit 0 that of x^31.
constexpr std::uint32_t crc_polynomial = 0xEDB88320;

// Return x^exponent mod P, in the same order of bits. All constants of the fast variants are such powers.
constexpr std::uint32_t power_of_x(std::size_t exponent) {
    std::uint32_t power = 0x80000000;
    for (; exponent > 0; exponent--) power = (power >> 1U) ^ ((power & 1U) != 0 ? crc_polynomial : 0U);
    return power;
}

}  // namespace molkv::digest
