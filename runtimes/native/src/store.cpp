// Reading of records: one positioned read for each run of neighbours, and their checksums.
#include "store.h"

#include <algorithm>
#include <array>
#include <cstring>
#include <numeric>
#include <utility>

#include "digest.h"
#include "record.h"
#include "shard.h"

namespace molkv {

namespace {

constexpr std::size_t longest_read = std::size_t{1} << 20U;  // bytes; longer runs are divided

}  // namespace

struct Store::Shard {
    File file;
    std::int64_t first_row;
    std::int64_t count;
    std::uint64_t data_offset;
};

// The wanted records of consecutive rows of one shard.
struct Store::Run {
    const Shard* shard;
    std::int64_t first_row;
    std::int64_t rows;
    std::span<const std::size_t> places;  // indices of `ids`, in ascending order of ids
};

Store::Store(const Bundle& bundle)
    : checksum_start_(crc32(bundle.table().id_bytes)), stride_(static_cast<std::size_t>(bundle.table().stride)) {
    const Table& table = bundle.table();
    shards_.reserve(table.shards.size());
    for (const ShardInfo& info : table.shards) {
        File file = bundle.open(info.file);
        const std::uint64_t data_offset = check_shard(file, info, table);
        shards_.push_back({std::move(file), info.first_row, info.count, data_offset});
    }
}

Store::~Store() = default;

const Store::Shard& Store::shard(std::int64_t row) const {
    const auto after = std::upper_bound(shards_.begin(), shards_.end(), row,
                                        [](std::int64_t wanted, const Shard& one) { return wanted < one.first_row; });
    return *std::prev(after);
}

void Store::gather(std::span<const std::int32_t> ids, std::span<std::byte> records) const {
    if (ids.size() == 1) {
        read(shard(ids[0]), ids[0], records.first(stride_));
        return;
    }
    std::vector<std::size_t> order(ids.size());
    std::iota(order.begin(), order.end(), std::size_t{0});
    std::sort(order.begin(), order.end(), [&](std::size_t a, std::size_t b) { return ids[a] < ids[b]; });
    const std::vector<Run> runs = plan(ids, order);
    for (const Run& run : runs) {  // flash serves many requests in parallel
        const auto row = static_cast<std::uint64_t>(run.first_row - run.shard->first_row);
        run.shard->file.announce(run.shard->data_offset + row * stride_, static_cast<std::size_t>(run.rows) * stride_);
    }
    for (const Run& run : runs) read_run(run, ids, records);
}

std::vector<Store::Run> Store::plan(std::span<const std::int32_t> ids, std::span<const std::size_t> order) const {
    std::vector<Run> runs;
    const auto longest = static_cast<std::int64_t>(std::max(longest_read / stride_, std::size_t{1}));
    std::size_t begin = 0;
    while (begin < order.size()) {
        const std::int64_t first = ids[order[begin]];
        const Shard& owner = shard(first);
        const std::int64_t limit = std::min(owner.first_row + owner.count, first + longest);
        std::int64_t last = first;
        std::size_t end = begin + 1;
        for (; end < order.size(); end++) {
            const std::int64_t next = ids[order[end]];
            if (next > last + 1 || next >= limit) break;
            last = next;
        }
        runs.push_back({&owner, first, last - first + 1, order.subspan(begin, end - begin)});
        begin = end;
    }
    return runs;
}

void Store::read_run(const Run& run, std::span<const std::int32_t> ids, std::span<std::byte> records) const {
    const auto record = [&](std::size_t place) { return records.subspan(place * stride_, stride_); };
    if (run.rows == 1) {
        read(*run.shard, run.first_row, record(run.places[0]));
        for (const std::size_t place : run.places.subspan(1)) {
            std::memcpy(record(place).data(), record(run.places[0]).data(), stride_);
        }
        return;
    }
    std::vector<std::byte> together(static_cast<std::size_t>(run.rows) * stride_);
    read(*run.shard, run.first_row, together);
    for (const std::size_t place : run.places) {
        const auto row = static_cast<std::size_t>(ids[place] - run.first_row);
        std::memcpy(record(place).data(), together.data() + row * stride_, stride_);
    }
}

void Store::read(const Shard& shard, std::int64_t row, std::span<std::byte> records) const {
    const auto index = static_cast<std::uint64_t>(row - shard.first_row);
    try {
        shard.file.read(shard.data_offset + index * stride_, records);
    } catch (const Error& error) {
        fail(error.kind(), error.what(), "; this happened while reading record ", index, " (token id ", row, ")");
    }
    const std::size_t covered = stride_ - static_cast<std::size_t>(checksum_bytes);
    for (; !records.empty(); records = records.subspan(stride_), row++) {
        std::array<std::byte, sizeof row> row_bytes{};
        std::memcpy(row_bytes.data(), &row, sizeof row);
        std::uint32_t stored = 0;
        std::memcpy(&stored, records.data() + covered, sizeof stored);
        const auto content = records.first(covered);
        if (crc32(content, crc32(row_bytes, checksum_start_)) == stored) continue;
        fail(Kind::bundle, shard.file.where(), ": record ", row - shard.first_row, " (token id ", row,
             ") fails its checksum: the file is damaged, or holds a record of another row or another export; copy or "
             "export the bundle again");
    }
}

}  // namespace molkv
