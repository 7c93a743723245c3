// SHA-256 (FIPS 180-4) of files, and the CRC-32 of zlib for records.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <string_view>

namespace molkv {

// A running SHA-256.
class Sha256 {
 public:
    Sha256();
    void update(std::span<const std::byte> bytes);
    void update(std::string_view bytes) { update(std::as_bytes(std::span(bytes))); }
    // Return the hash as 64 lower-case hexadecimal digits. Call it once.
    [[nodiscard]] std::string hex();

 private:
    std::array<std::uint32_t, 8> state_;
    std::array<std::byte, 64> pending_{};
    std::uint64_t size_ = 0;
};

// Return the CRC-32 of bytes that follow bytes with the CRC-32 `before` (0: no bytes before).
std::uint32_t crc32(std::span<const std::byte> bytes, std::uint32_t before = 0);

}  // namespace molkv
