// Copies within and between KV caches.
#include "kv_cache.h"

#include <cstring>

namespace molkv {

namespace {

// Copy numbers of `size` bytes from one stride to another. Strides are in bytes.
void copy_strided(std::size_t count, std::size_t size, const std::byte* from, std::size_t from_stride, std::byte* into,
                  std::size_t into_stride) {
    if (size == sizeof(float)) {  // a copy of known size needs no call
        for (std::size_t i = 0; i < count; i++) std::memcpy(into + i * into_stride, from + i * from_stride, 4);
    } else {
        for (std::size_t i = 0; i < count; i++) std::memcpy(into + i * into_stride, from + i * from_stride, size);
    }
}

}  // namespace

KvCache::KvCache(const std::vector<CacheShape>& shapes, DType dtype, int batch_size, std::int64_t slots,
                 bool transposed_keys)
    : dtype_(dtype),
      number_(dtype_bytes(dtype, 1)),
      batch_size_(static_cast<std::size_t>(batch_size)),
      slots_(static_cast<std::size_t>(slots)),
      transposed_keys_(transposed_keys),
      memory_(checked_product({static_cast<std::int64_t>(bytes(shapes, dtype, slots)), batch_size})) {
    // Static graphs do not run sequences that have ended.
    if (!transposed_keys) last_ = ZeroedArray<std::byte>(memory_.size() / slots_);
    std::size_t before = 0;
    for (std::size_t tensor = 0; tensor < 2 * shapes.size(); tensor++) {
        const auto heads = static_cast<std::size_t>(shapes[tensor / 2].heads);
        const auto head_dim = static_cast<std::size_t>(shapes[tensor / 2].head_dim);
        const std::size_t row = head_dim * number_;
        tensors_.push_back({name(shapes, tensor), heads, head_dim, row, before});
        before += heads * row;
    }
}

std::size_t KvCache::bytes(const std::vector<CacheShape>& shapes, DType dtype, std::int64_t slots) {
    const auto number = static_cast<std::int64_t>(dtype_bytes(dtype, 1));
    std::size_t sum = 0;
    for (const CacheShape& shape : shapes) {
        const std::size_t more = checked_product({2, shape.heads, shape.head_dim, slots, number});
        sum = checked_product({static_cast<std::int64_t>(sum + more)});  // neither is above 2^62
    }
    return sum;
}

std::string KvCache::name(const std::vector<CacheShape>& shapes, std::size_t tensor) {
    return text(shapes[tensor / 2].layer, tensor % 2 == 0 ? ".key" : ".value");
}

std::byte* KvCache::data(std::size_t tensor, int sequence) const {
    return head_data(tensor, sequence, 0);
}

std::size_t KvCache::place(std::size_t tensor, int sequence, std::size_t head) const {
    const Tensor& one = tensors_[tensor];
    return one.before * batch_size_ + (static_cast<std::size_t>(sequence) * one.heads + head) * one.row;
}

std::byte* KvCache::head_data(std::size_t tensor, int sequence, std::size_t head) const {
    return memory_.data() + place(tensor, sequence, head) * slots_;
}

void KvCache::read(std::size_t tensor, int sequence, std::int64_t head, std::int64_t count, std::byte* rows) const {
    const auto positions = static_cast<std::size_t>(count);
    const std::byte* from = head_data(tensor, sequence, static_cast<std::size_t>(head));
    if (!transposed(tensor)) {
        if (positions > 0) std::memcpy(rows, from, positions * row_bytes(tensor));
        return;
    }
    for (std::size_t i = 0; i < tensors_[tensor].head_dim; i++)
        copy_strided(positions, number_, from + i * slots_ * number_, number_, rows + i * number_, row_bytes(tensor));
}

void KvCache::write(std::size_t tensor, int sequence, std::int64_t head, std::int64_t count, const std::byte* rows) {
    const auto positions = static_cast<std::size_t>(count);
    std::byte* into = head_data(tensor, sequence, static_cast<std::size_t>(head));
    if (!transposed(tensor)) {
        if (positions > 0) std::memcpy(into, rows, positions * row_bytes(tensor));
        return;
    }
    for (std::size_t i = 0; i < tensors_[tensor].head_dim; i++)
        copy_strided(positions, number_, rows + i * number_, row_bytes(tensor), into + i * slots_ * number_, number_);
}

void KvCache::copy(int from, int to, std::int64_t count) {
    const auto positions = static_cast<std::size_t>(count);
    for (std::size_t tensor = 0; tensor < tensors(); tensor++) {
        // The numbers of a head are `lines` lines. Each line begins with the first positions.
        const std::size_t lines = transposed(tensor) ? tensors_[tensor].head_dim : 1;
        const std::size_t line = slots_ * row_bytes(tensor) / lines;
        for (std::size_t i = 0; i < tensors_[tensor].heads * lines; i++)
            std::memcpy(data(tensor, to) + i * line, data(tensor, from) + i * line,
                        positions * row_bytes(tensor) / lines);
    }
}

void KvCache::clear(int sequence, std::int64_t count) {
    const auto positions = static_cast<std::size_t>(count);
    for (std::size_t tensor = 0; tensor < tensors(); tensor++) {
        const std::size_t lines = transposed(tensor) ? tensors_[tensor].head_dim : 1;
        const std::size_t line = slots_ * row_bytes(tensor) / lines;
        for (std::size_t i = 0; i < tensors_[tensor].heads * lines; i++)
            std::memset(data(tensor, sequence) + i * line, 0, positions * row_bytes(tensor) / lines);
    }
}

void KvCache::append(std::size_t tensor, int sequence, std::int64_t start, std::int64_t count, std::int64_t length,
                     const std::byte* numbers) {
    const auto positions = static_cast<std::size_t>(count);
    const auto all = static_cast<std::size_t>(length);
    const Tensor& one = tensors_[tensor];
    const std::size_t lines = transposed(tensor) ? one.heads * one.head_dim : one.heads;
    const std::size_t size = transposed(tensor) ? number_ : one.row;
    std::byte* into = data(tensor, sequence) + static_cast<std::size_t>(start) * size;
    if (count == 1) return copy_strided(lines, size, numbers, all * size, into, slots_ * size);
    for (std::size_t i = 0; i < lines; i++)
        std::memcpy(into + i * slots_ * size, numbers + i * all * size, positions * size);
}

void KvCache::keep_last(int sequence) {
    for (std::size_t tensor = 0; tensor < tensors(); tensor++) {
        const std::size_t row = row_bytes(tensor);
        for (std::size_t head = 0; head < tensors_[tensor].heads; head++)
            std::memcpy(last_.data() + place(tensor, sequence, head),
                        head_data(tensor, sequence, head) + (slots_ - 1) * row, row);
    }
}

void KvCache::put_back_last(int sequence) {
    for (std::size_t tensor = 0; tensor < tensors(); tensor++) {
        const std::size_t row = row_bytes(tensor);
        for (std::size_t head = 0; head < tensors_[tensor].heads; head++)
            std::memcpy(head_data(tensor, sequence, head) + (slots_ - 1) * row,
                        last_.data() + place(tensor, sequence, head), row);
    }
}

}  // namespace molkv
