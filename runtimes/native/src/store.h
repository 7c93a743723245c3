// The expert store: records by token id, read with positioned reads.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "bundle.h"

namespace molkv {

// Checks the headers of the shards (check 9) and the checksum of each record that it reads (check 17). Different
// threads may gather at the same time.
class Store {
 public:
    explicit Store(const Bundle& bundle);
    Store(const Store&) = delete;
    Store& operator=(const Store&) = delete;
    ~Store();

    [[nodiscard]] std::size_t stride() const { return stride_; }
    // Read the records of token ids into `records` [ids, stride], one positioned read for each run of neighbours. An id
    // that occurs twice is read once. Throws a bundle error; the ids must be inside the vocabulary. Allocates no memory
    // for a single id.
    void gather(std::span<const std::int32_t> ids, std::span<std::byte> records) const;

 private:
    struct Shard;
    struct Run;
    [[nodiscard]] const Shard& shard(std::int64_t row) const;
    [[nodiscard]] std::vector<Run> plan(std::span<const std::int32_t> ids, std::span<const std::size_t> order) const;
    void read_run(const Run& run, std::span<const std::int32_t> ids, std::span<std::byte> records) const;
    // Read the records of consecutive rows from `row` on, and check their checksums.
    void read(const Shard& shard, std::int64_t row, std::span<std::byte> records) const;

    std::vector<Shard> shards_;
    std::uint32_t checksum_start_;  // of the bytes of the table's id
    std::size_t stride_;
};

// Reads the records of the next part of a prompt in a thread of its own, while the graph computes the current part.
class ReadAhead {
 public:
    explicit ReadAhead(const Store& store);
    ReadAhead(const ReadAhead&) = delete;
    ReadAhead& operator=(const ReadAhead&) = delete;
    ~ReadAhead();  // waits for the running read

    // Begin to read records. `ids` and `records` must stay valid until `wait` returns or this object is destroyed (so
    // declare it after them). A read that still runs is finished first, and its error is dropped.
    void start(std::span<const std::int32_t> ids, std::span<std::byte> records);
    // Wait until all records are there. Throws the error of the reading thread.
    void wait();

 private:
    struct Worker;
    std::unique_ptr<Worker> worker_;
};

}  // namespace molkv
