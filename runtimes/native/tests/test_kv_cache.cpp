// KV caches whose layers have different shapes: no number of a tensor, sequence, head or slot is in another's place.
#include <algorithm>
#include <limits>

#include "check.h"
#include "kv_cache.h"

namespace test = molkv::test;
using molkv::CacheShape;
using molkv::DType;
using molkv::KvCache;

namespace {

constexpr int batch_size = 2;
constexpr std::int64_t slots = 5;
const std::vector<CacheShape> shapes = {{0, 2, 6}, {3, 1, 10}, {4, 3, 2}};

// A number for each place: no other place has it.
float number_at(std::size_t tensor, int sequence, std::int64_t head, std::int64_t position, std::int64_t i) {
    return static_cast<float>((((static_cast<std::int64_t>(tensor) * 10 + sequence) * 10 + head) * 10 + position) * 10 +
                              i);
}

// The rows [count, head_dim] of a head.
std::vector<float> rows_of(const KvCache& cache, std::size_t tensor, int sequence, std::int64_t head,
                           std::int64_t count) {
    std::vector<float> rows;
    for (std::int64_t position = 0; position < count; position++)
        for (std::int64_t i = 0; i < cache.head_dim(tensor); i++)
            rows.push_back(number_at(tensor, sequence, head, position, i));
    return rows;
}

std::vector<float> read(const KvCache& cache, std::size_t tensor, int sequence, std::int64_t head,
                        std::int64_t count = slots) {
    std::vector<float> rows(static_cast<std::size_t>(count * cache.head_dim(tensor)));
    cache.read(tensor, sequence, head, count, std::as_writable_bytes(std::span(rows)).data());
    return rows;
}

void fill(KvCache& cache) {
    for (std::size_t tensor = 0; tensor < cache.tensors(); tensor++)
        for (int sequence = 0; sequence < batch_size; sequence++)
            for (std::int64_t head = 0; head < cache.heads(tensor); head++) {
                const auto rows = rows_of(cache, tensor, sequence, head, slots);
                cache.write(tensor, sequence, head, slots, std::as_bytes(std::span(rows)).data());
            }
}

// Check that each head of a sequence has the rows of a sequence, from the position `first` on; before it those of
// another one; -1: zeros.
void check_rows(const KvCache& cache, int sequence, int before, std::int64_t first, std::string_view what) {
    for (std::size_t tensor = 0; tensor < cache.tensors(); tensor++)
        for (std::int64_t head = 0; head < cache.heads(tensor); head++) {
            auto expected = rows_of(cache, tensor, sequence, head, slots);
            auto start = rows_of(cache, tensor, before, head, first);
            if (before < 0) std::fill(start.begin(), start.end(), 0.0F);
            std::copy(start.begin(), start.end(), expected.begin());
            test::that(read(cache, tensor, sequence, head) == expected,
                       molkv::text(what, ": sequence ", sequence, ", head ", head, " of ", cache.name(tensor)));
        }
}

void check_facts() {
    const KvCache cache(shapes, DType::float32, batch_size, slots, false);
    test::equal(cache.tensors(), 6U, "the number of tensors");
    test::equal(cache.name(2), "3.key", "a name");
    test::equal(cache.name(5), "4.value", "another name");
    test::equal(cache.heads(3), 1, "the heads of a layer");
    test::equal(cache.head_dim(3), 10, "the head size of a layer");
    test::equal(cache.row_bytes(4), 8U, "the bytes of a row");
    // 2 * 5 slots * (2 * 6 + 1 * 10 + 3 * 2) numbers.
    test::equal(KvCache::bytes(shapes, DType::float32, slots), 1120U, "the bytes of a sequence");
    test::equal(KvCache::bytes(shapes, DType::int8, slots), 280U, "the bytes of a sequence in int8");
    constexpr std::int64_t most = std::numeric_limits<std::int32_t>::max();
    const auto refused = [](const std::vector<CacheShape>& hostile) {
        test::refused([&] { static_cast<void>(KvCache::bytes(hostile, DType::int8, 1)); }, molkv::Kind::memory,
                      "more memory than a process can have", "hostile shapes");
    };
    refused({{0, most, most}});
    refused({{0, most, most / 2}, {1, most, most / 2}, {2, most, most / 2}});
}

void check_places(bool transposed_keys) {
    KvCache cache(shapes, DType::float32, batch_size, slots, transposed_keys);
    fill(cache);
    for (int sequence = 0; sequence < batch_size; sequence++) check_rows(cache, sequence, 0, 0, "written rows");
    cache.copy(0, 1, 2);
    check_rows(cache, 0, 0, 0, "the source of a copy");
    check_rows(cache, 1, 0, 2, "a copy of 2 positions");
    cache.clear(0, 3);
    check_rows(cache, 0, -1, 3, "3 cleared positions");
    check_rows(cache, 1, 0, 2, "the sequence beside it");
}

// A tensor is [B, Hkv, slots, head_dim], as the graph reads it.
void check_memory() {
    KvCache cache(shapes, DType::float32, batch_size, slots, false);
    fill(cache);
    for (std::size_t tensor = 0; tensor < cache.tensors(); tensor++) {
        std::vector<float> expected;
        for (int sequence = 0; sequence < batch_size; sequence++)
            for (std::int64_t head = 0; head < cache.heads(tensor); head++) {
                const auto rows = rows_of(cache, tensor, sequence, head, slots);
                expected.insert(expected.end(), rows.begin(), rows.end());
            }
        const auto* found = reinterpret_cast<const float*>(cache.data(tensor, 0));
        test::that(std::equal(expected.begin(), expected.end(), found), "the memory of " + cache.name(tensor));
    }
}

void check_last() {
    KvCache cache(shapes, DType::float32, batch_size, slots, false);
    fill(cache);
    cache.keep_last(0);
    cache.keep_last(1);
    cache.clear(0, slots);
    cache.clear(1, slots);
    cache.put_back_last(0);
    cache.put_back_last(1);
    for (int sequence = 0; sequence < batch_size; sequence++)
        check_rows(cache, sequence, -1, slots - 1, "the last slot that was put back");
}

}  // namespace

int main() {
    check_facts();
    check_places(false);
    check_places(true);
    check_memory();
    check_last();
    return test::finish();
}
