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

KvCache::KvCache(const ModelConfig& config, DType dtype, int batch_size, std::int64_t slots, bool transposed_keys)
    : dtype_(dtype),
      number_(dtype_bytes(dtype, 1)),
      batch_size_(static_cast<std::size_t>(batch_size)),
      tensors_(2 * static_cast<std::size_t>(config.num_hidden_layers)),
      heads_(static_cast<std::size_t>(config.num_key_value_heads)),
      head_dim_(static_cast<std::size_t>(config.head_dim)),
      slots_(static_cast<std::size_t>(slots)),
      transposed_keys_(transposed_keys),
      memory_(checked_product({static_cast<std::int64_t>(bytes(config, dtype, slots)), batch_size})) {
    // Static graphs do not run sequences that have ended.
    if (!transposed_keys) last_ = ZeroedArray<std::byte>(memory_.size() / slots_);
}

std::size_t KvCache::bytes(const ModelConfig& config, DType dtype, std::int64_t slots) {
    return checked_product({2, config.num_hidden_layers, config.num_key_value_heads, config.head_dim, slots,
                            static_cast<std::int64_t>(dtype_bytes(dtype, 1))});
}

std::string KvCache::name(std::size_t tensor) {
    return text(tensor / 2, tensor % 2 == 0 ? ".key" : ".value");
}

std::byte* KvCache::data(std::size_t tensor, int sequence) const {
    return head_data(tensor, sequence, 0);
}

std::size_t KvCache::head_number(std::size_t tensor, int sequence, std::size_t head) const {
    return (tensor * batch_size_ + static_cast<std::size_t>(sequence)) * heads_ + head;
}

std::byte* KvCache::head_data(std::size_t tensor, int sequence, std::size_t head) const {
    return memory_.data() + head_number(tensor, sequence, head) * slots_ * row_bytes();
}

void KvCache::read(std::size_t tensor, int sequence, std::int64_t head, std::int64_t count, std::byte* rows) const {
    const auto positions = static_cast<std::size_t>(count);
    const std::byte* from = head_data(tensor, sequence, static_cast<std::size_t>(head));
    if (!transposed(tensor)) {
        if (positions > 0) std::memcpy(rows, from, positions * row_bytes());
        return;
    }
    for (std::size_t i = 0; i < head_dim_; i++)
        copy_strided(positions, number_, from + i * slots_ * number_, number_, rows + i * number_, row_bytes());
}

void KvCache::write(std::size_t tensor, int sequence, std::int64_t head, std::int64_t count, const std::byte* rows) {
    const auto positions = static_cast<std::size_t>(count);
    std::byte* into = head_data(tensor, sequence, static_cast<std::size_t>(head));
    if (!transposed(tensor)) {
        if (positions > 0) std::memcpy(into, rows, positions * row_bytes());
        return;
    }
    for (std::size_t i = 0; i < head_dim_; i++)
        copy_strided(positions, number_, rows + i * number_, row_bytes(), into + i * slots_ * number_, number_);
}

void KvCache::copy(int from, int to, std::int64_t count) {
    const auto positions = static_cast<std::size_t>(count);
    for (std::size_t tensor = 0; tensor < tensors_; tensor++) {
        // The numbers of a head are `lines` lines. Each line begins with the first positions.
        const std::size_t lines = transposed(tensor) ? head_dim_ : 1;
        const std::size_t line = slots_ * row_bytes() / lines;
        for (std::size_t i = 0; i < heads_ * lines; i++)
            std::memcpy(data(tensor, to) + i * line, data(tensor, from) + i * line, positions * row_bytes() / lines);
    }
}

void KvCache::clear(int sequence, std::int64_t count) {
    const auto positions = static_cast<std::size_t>(count);
    for (std::size_t tensor = 0; tensor < tensors_; tensor++) {
        const std::size_t lines = transposed(tensor) ? head_dim_ : 1;
        const std::size_t line = slots_ * row_bytes() / lines;
        for (std::size_t i = 0; i < heads_ * lines; i++)
            std::memset(data(tensor, sequence) + i * line, 0, positions * row_bytes() / lines);
    }
}

void KvCache::append(std::size_t tensor, int sequence, std::int64_t start, std::int64_t count, std::int64_t length,
                     const std::byte* numbers) {
    const auto positions = static_cast<std::size_t>(count);
    const auto all = static_cast<std::size_t>(length);
    const std::size_t lines = transposed(tensor) ? heads_ * head_dim_ : heads_;
    const std::size_t size = transposed(tensor) ? number_ : row_bytes();
    std::byte* into = data(tensor, sequence) + static_cast<std::size_t>(start) * size;
    if (count == 1) return copy_strided(lines, size, numbers, all * size, into, slots_ * size);
    for (std::size_t i = 0; i < lines; i++)
        std::memcpy(into + i * slots_ * size, numbers + i * all * size, positions * size);
}

void KvCache::keep_last(int sequence) {
    const std::size_t row = row_bytes();
    for (std::size_t tensor = 0; tensor < tensors_; tensor++)
        for (std::size_t head = 0; head < heads_; head++)
            std::memcpy(last_.data() + head_number(tensor, sequence, head) * row,
                        head_data(tensor, sequence, head) + (slots_ - 1) * row, row);
}

void KvCache::put_back_last(int sequence) {
    const std::size_t row = row_bytes();
    for (std::size_t tensor = 0; tensor < tensors_; tensor++)
        for (std::size_t head = 0; head < heads_; head++)
            std::memcpy(head_data(tensor, sequence, head) + (slots_ - 1) * row,
                        last_.data() + head_number(tensor, sequence, head) * row, row);
}

}  // namespace molkv
