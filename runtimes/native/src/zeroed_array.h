// Arrays that begin as zeros. The system provides a page of memory when it is first written.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <initializer_list>
#include <memory>
#include <span>

#include "error.h"

namespace molkv {

// Return the product of sizes. Throw a memory error if a size is negative, or if the product is too large.
inline std::size_t checked_product(std::initializer_list<std::int64_t> sizes) {
    constexpr std::size_t most = SIZE_MAX / 4;
    std::size_t product = 1;
    for (const std::int64_t size : sizes) {
        const bool fits = size >= 0 && static_cast<std::uint64_t>(size) <= most;
        if (!fits || (size > 0 && product > most / static_cast<std::size_t>(size)))
            fail(Kind::memory, "the sizes of the model need more memory than a process can have");
        product *= static_cast<std::size_t>(size);
    }
    return product;
}

// An array of numbers with a fixed size, aligned to 64 bytes. It moves, and does not copy.
template <typename T>
class ZeroedArray {
 public:
    ZeroedArray() = default;
    // Throws a memory error.
    explicit ZeroedArray(std::size_t count) : count_(count) {
        if (count > (SIZE_MAX - alignment) / sizeof(T))
            fail(Kind::memory, "found a size of ", count, " numbers, expected a size that fits into memory");
        std::size_t room = count * sizeof(T) + alignment;
        // Large blocks of calloc are fresh pages, which take no memory before they are written.
        memory_.reset(std::calloc(1, room));
        void* start = memory_.get();
        if (start == nullptr) fail(Kind::memory, "the system refuses ", count * sizeof(T), " bytes of memory");
        data_ = static_cast<T*>(std::align(alignment, count * sizeof(T), start, room));
    }

    [[nodiscard]] T* data() const { return data_; }
    [[nodiscard]] std::size_t size() const { return count_; }
    [[nodiscard]] std::span<T> span() const { return {data_, count_}; }
    T& operator[](std::size_t index) const { return data_[index]; }

 private:
    static constexpr std::size_t alignment = 64;
    struct Free {
        void operator()(void* memory) const { std::free(memory); }
    };
    std::unique_ptr<void, Free> memory_;
    T* data_ = nullptr;
    std::size_t count_ = 0;
};

}  // namespace molkv
