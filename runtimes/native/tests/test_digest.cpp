// SHA-256 and CRC-32, compared with their standards, with other programs, and each variant with the portable one.
#include <array>
#include <cstddef>
#include <cstdint>
#include <iostream>
#include <span>
#include <string>
#include <string_view>

#include "check.h"
#include "digest.h"
#include "digest_variants.h"

namespace test = molkv::test;
using Bytes = std::span<const std::byte>;
using Words = std::array<std::uint32_t, 8>;

namespace {

std::string sha256(std::string_view content, std::size_t piece) {
    molkv::Sha256 digest;
    for (; content.size() > piece; content.remove_prefix(piece)) digest.update(content.substr(0, piece));
    digest.update(content);
    return digest.hex();
}

std::uint32_t crc32(std::string_view content, std::uint32_t before = 0) {
    return molkv::crc32(std::as_bytes(std::span(content)), before);
}

// Return bytes without a short period. Byte i is the lowest byte of (167 i) ^ (29 (i >> 8)) ^ 13.
std::string sample(std::size_t size) {
    std::string bytes(size, '\0');
    for (std::size_t i = 0; i < size; i++) bytes[i] = static_cast<char>(((i * 167) ^ ((i >> 8U) * 29) ^ 13U) & 255U);
    return bytes;
}

void check_sha256() {
    const std::string letters = "abcdbcdecdefdefgefghfghighijhijkijkljklmklmnlmnomnopnopq";
    const std::string million(1'000'000, 'a');
    for (const std::size_t piece : {1U, 7U, 63U, 64U, 65U, 4096U}) {
        // NIST, "Examples with Intermediate Values": SHA-256.
        test::equal(sha256("", piece), "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855", "no bytes");
        test::equal(sha256("abc", piece), "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad", "abc");
        test::equal(sha256(letters, piece), "248d6a61d20638b8e5c026930c3e6039a33ce45964ff2167f6ecedd419db06c1",
                    "56 bytes");
        test::equal(sha256(million, piece), "cdc76e5c9914fb9281a1c7e284d73e67f1809a48a497200e046d39ccc7112cd0",
                    "a million bytes");
    }
}

// The hashes of 0 to 300 bytes, in pieces and at once. The expected value is that of Python's hashlib.
void check_sha256_of_each_length() {
    const std::string bytes = sample(300);
    for (const std::size_t piece : {1U, 3U, 63U, 64U, 65U, 130U, 300U}) {
        std::string hashes;
        for (std::size_t size = 0; size <= bytes.size(); size++) hashes += sha256(bytes.substr(0, size), piece);
        test::equal(sha256(hashes, hashes.size()), "9f6d737f197f675a49d919264145f438d0f5eafd4d7339d46e689fec04c36fbb",
                    molkv::text("the hashes of 0 to 300 bytes in pieces of ", piece));
    }
}

void check_crc32() {
    test::equal(crc32("123456789"), 0xcbf43926U, "the check value of CRC-32");
    test::equal(crc32(""), 0U, "the CRC-32 of no bytes");
    test::equal(crc32("The quick brown fox jumps over the lazy dog"), 0x414fa339U, "the CRC-32 of 43 bytes");
    // The expected value is that of zlib.
    const std::string bytes = sample(20000);
    test::equal(crc32(bytes), 0xf510606cU, "the CRC-32 of 20000 bytes");
    for (std::size_t cut = 0; cut <= bytes.size(); cut += cut < 300 ? 1 : 997) {
        test::equal(crc32(bytes.substr(cut), crc32(bytes.substr(0, cut))), 0xf510606cU, "a CRC-32 in two pieces");
    }
    // docs/bundle-format.md, "Record": the id 0123456789abcdef, row 258 and a record of 60 zeros.
    const std::string id = "\x01\x23\x45\x67\x89\xab\xcd\xef";
    const std::string row("\x02\x01\0\0\0\0\0\0", 8);
    test::equal(crc32(id + row + std::string(60, '\0')), 0xde7960deU, "the checksum of a record");
}

// Return the CRC register after more bytes, bit by bit.
std::uint32_t crc_by_bits(std::uint32_t crc, Bytes bytes) {
    for (const std::byte byte : bytes) {
        crc ^= std::to_integer<std::uint32_t>(byte);
        for (int bit = 0; bit < 8; bit++) crc = (crc >> 1U) ^ ((crc & 1U) != 0 ? 0xEDB88320U : 0U);
    }
    return crc;
}

void check_crc32_variants() {
    const std::string content = sample(40000);
    const Bytes bytes = std::as_bytes(std::span(content));
    for (const auto& variant : molkv::digest::crc32_variants()) {
        std::cout << "CRC-32: " << variant.name << "\n";
        for (std::size_t size = 0; size <= 300; size++) {
            for (std::size_t after = 0; after < 16; after++) {  // each alignment
                const Bytes part = bytes.last(size + after).first(size);
                test::equal(variant.run(0x12345678, part), crc_by_bits(0x12345678, part),
                            molkv::text("CRC-32, ", variant.name, ", ", size, " bytes before the last ", after));
            }
        }
        for (std::size_t size = 301; size <= bytes.size(); size += 611) {
            test::equal(variant.run(~0U, bytes.last(size)), crc_by_bits(~0U, bytes.last(size)),
                        molkv::text("CRC-32, ", variant.name, ", ", size, " bytes"));
        }
    }
}

// Compare the powers of x with a long division by P = 0x104C11DB7, whose lowest bit is the coefficient of x^0.
void check_powers() {
    std::uint64_t remainder = 1;
    for (std::size_t exponent = 0; exponent <= 33000; exponent++) {
        std::uint32_t reversed = 0;
        for (unsigned bit = 0; bit < 32; bit++) reversed |= ((remainder >> bit) & 1U) != 0 ? 1U << (31 - bit) : 0U;
        const bool used = exponent < 600 || exponent % 16384 == 0;
        if (used) test::equal(molkv::digest::power_of_x(exponent), reversed, molkv::text("x to the ", exponent));
        remainder <<= 1U;
        if ((remainder >> 32U) != 0) remainder ^= 0x104C11DB7U;
    }
}

void check_sha256_variants() {
    // FIPS 180-4: the first state, the only block of "abc", and its hash.
    constexpr Words start = {0x6a09e667, 0xbb67ae85, 0x3c6ef372, 0xa54ff53a,
                             0x510e527f, 0x9b05688c, 0x1f83d9ab, 0x5be0cd19};
    constexpr Words hash = {0xba7816bf, 0x8f01cfea, 0x414140de, 0x5dae2223,
                            0xb00361a3, 0x96177a9c, 0xb410ff61, 0xf20015ad};
    std::string padded = "abc\x80" + std::string(60, '\0');
    padded.back() = 24;
    const std::string content = sample(1024);
    const Bytes bytes = std::as_bytes(std::span(content));
    const auto variants = molkv::digest::sha256_variants();
    for (const auto& variant : variants) {
        std::cout << "SHA-256: " << variant.name << "\n";
        Words state = start;
        variant.run(state, {});
        test::that(state == start, molkv::text("SHA-256, ", variant.name, ", no blocks"));
        variant.run(state, std::as_bytes(std::span(padded)));
        test::that(state == hash, molkv::text("SHA-256, ", variant.name, ", abc"));
        Words expected = start;
        for (std::size_t i = 0; i < 256; i++) {  // 0 to 15 blocks at each alignment
            const Bytes part = bytes.last(64 * (i / 16) + i % 16).first(64 * (i / 16));
            state = expected;
            variant.run(state, part);
            variants.back().run(expected, part);
            test::that(state == expected, molkv::text("SHA-256, ", variant.name, ", case ", i));
        }
    }
    test::equal(variants.back().name, "portable", "the last variant of SHA-256");
    test::equal(molkv::digest::crc32_variants().back().name, "portable", "the last variant of CRC-32");
}

}  // namespace

int main() {
    check_sha256();
    check_sha256_of_each_length();
    check_crc32();
    check_crc32_variants();
    check_powers();
    check_sha256_variants();
    return test::finish();
}
