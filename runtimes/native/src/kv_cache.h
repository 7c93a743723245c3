// The KV caches of B sequences, in memory that is allocated once.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include "manifest.h"
#include "zeroed_array.h"

namespace molkv {

// For each layer with a cache two tensors, the keys and the values: [B, Hkv, slots, head_dim]. In static graphs the
// keys are transposed: [B, Hkv, head_dim, slots]. A row is the numbers of one position and head, [head_dim]. Hkv and
// head_dim are those of the layer.
class KvCache {
 public:
    // Throws a memory error.
    KvCache(const std::vector<CacheShape>& shapes, DType dtype, int batch_size, std::int64_t slots,
            bool transposed_keys);

    // Return the bytes of the caches of one sequence. Throws a memory error if there are too many.
    static std::size_t bytes(const std::vector<CacheShape>& shapes, DType dtype, std::int64_t slots);

    // Tensors are numbered: 2i are the keys of shape number i, 2i + 1 its values.
    [[nodiscard]] std::size_t tensors() const { return tensors_.size(); }
    // Return the name of a tensor in graphs, such as "3.key".
    [[nodiscard]] static std::string name(const std::vector<CacheShape>& shapes, std::size_t tensor);
    [[nodiscard]] const std::string& name(std::size_t tensor) const { return tensors_[tensor].name; }
    [[nodiscard]] DType dtype() const { return dtype_; }
    [[nodiscard]] std::int64_t heads(std::size_t tensor) const {
        return static_cast<std::int64_t>(tensors_[tensor].heads);
    }
    [[nodiscard]] std::int64_t head_dim(std::size_t tensor) const {
        return static_cast<std::int64_t>(tensors_[tensor].head_dim);
    }
    [[nodiscard]] std::size_t row_bytes(std::size_t tensor) const { return tensors_[tensor].row; }
    // The memory of a tensor of one sequence, and of the sequences after it.
    [[nodiscard]] std::byte* data(std::size_t tensor, int sequence) const;

    // Copy the rows of one head at the positions 0 to `count` - 1, [count, head_dim].
    void read(std::size_t tensor, int sequence, std::int64_t head, std::int64_t count, std::byte* rows) const;
    void write(std::size_t tensor, int sequence, std::int64_t head, std::int64_t count, const std::byte* rows);
    // Copy the first `count` positions of a sequence to another one.
    void copy(int from, int to, std::int64_t count);
    // Set the first `count` positions to 0.
    void clear(int sequence, std::int64_t count);
    // Write `count` new positions of all heads from `start` on. `numbers` has `length` positions: keys [Hkv, head_dim,
    // length] if they are transposed, otherwise [Hkv, length, head_dim].
    void append(std::size_t tensor, int sequence, std::int64_t start, std::int64_t count, std::int64_t length,
                const std::byte* numbers);

    // Keep the last slot of a sequence, and write it back. Allocates nothing.
    void keep_last(int sequence);
    void put_back_last(int sequence);

 private:
    struct Tensor {
        std::string name;
        std::size_t heads;
        std::size_t head_dim;
        std::size_t row;     // bytes
        std::size_t before;  // bytes of one slot of one sequence in the tensors before this one
    };
    [[nodiscard]] bool transposed(std::size_t tensor) const { return transposed_keys_ && tensor % 2 == 0; }
    // Return the bytes before a head if a tensor has one slot.
    [[nodiscard]] std::size_t place(std::size_t tensor, int sequence, std::size_t head) const;
    [[nodiscard]] std::byte* head_data(std::size_t tensor, int sequence, std::size_t head) const;

    DType dtype_;
    std::size_t number_;  // bytes
    std::size_t batch_size_;
    std::size_t slots_;
    bool transposed_keys_;
    std::vector<Tensor> tensors_;
    ZeroedArray<std::byte> memory_;  // the tensors one after the other
    ZeroedArray<std::byte> last_;    // the same with one slot; empty if keys are transposed
};

}  // namespace molkv
