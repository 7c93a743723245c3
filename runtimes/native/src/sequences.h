// The state of a batch of sequences, and the operations on it: prefill, decode, rewind, fork, save and restore.
#pragma once

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "experts.h"
#include "model.h"
#include "zeroed_array.h"

namespace molkv {

class Calls;

// B sequences, each with its token ids, KV cache and experts. A sequence of length 0 is free. One thread at a time.
class Sequences {
 public:
    // max_length and prefill_chunk: 0 for the defaults, the context and 128. cancelled: a flag that other threads may
    // set at any time; the running or the next prefill or decode then clears it and throws a cancelled error. Throws a
    // request or memory error.
    Sequences(const Model& model, std::int64_t batch_size, std::int64_t max_length, std::int64_t prefill_chunk,
              std::atomic<bool>* cancelled = nullptr);
    Sequences(const Sequences&) = delete;
    Sequences& operator=(const Sequences&) = delete;
    ~Sequences();

    [[nodiscard]] const Model& model() const { return model_; }
    [[nodiscard]] int batch_size() const { return static_cast<int>(lengths_.size()); }
    [[nodiscard]] std::int64_t max_length() const { return max_length_; }
    [[nodiscard]] std::int64_t length(int sequence) const;
    // The token ids that were run.
    [[nodiscard]] std::span<const std::int32_t> history(int sequence) const;

    // Append token ids to a sequence. Returns the logits of the last position [V]; with all_logits of every position
    // [n, V]. Valid until the next call. A failure leaves the sequence as it was.
    std::span<const float> prefill(int sequence, std::span<const std::int32_t> ids, bool all_logits = false);
    // Append one id [B] to each active sequence [B]; an empty `active` means all. Returns logits [B, V], valid until
    // the next call. Allocates nothing.
    std::span<const float> decode(std::span<const std::int32_t> ids, std::span<const std::uint8_t> active = {});
    // Shorten a sequence. Experts that the window has lost are read again.
    void rewind(int sequence, std::int64_t length);
    // Copy a sequence to the first free one, and return its index.
    int fork(int sequence);

    // Write a sequence to a file of docs/bundle-format.md, "The saved file"; `ids` is the text: the history, and ids
    // that were not run. The file is complete when it has its name.
    void save(int sequence, std::span<const std::int32_t> ids, const std::string& path) const;
    // Fill a free sequence from a file. Returns all ids of the text.
    std::vector<std::int32_t> restore(int sequence, const std::string& path);

 private:
    void check_sequence(std::int64_t sequence) const;
    void check_free(int sequence) const;
    void check_cancelled();
    void run_parts(std::span<const Part> parts, std::span<const std::int32_t> ids);
    [[nodiscard]] std::span<std::byte> records_for(std::int64_t count);
    [[nodiscard]] std::span<std::int32_t> all_ids(int sequence) const;
    void restore_experts(int sequence, std::span<const std::int32_t> ids, std::int64_t length, std::int64_t end);

    const Model& model_;
    std::int64_t max_length_;
    std::vector<std::int64_t> lengths_;
    ZeroedArray<std::int32_t> ids_;  // [B, max_length]
    std::unique_ptr<Calls> calls_;
    std::vector<float> logits_;  // of a prompt
    // Of a decode step: the records and ids of the active sequences, and for each sequence its position and whether it
    // is active.
    std::vector<std::byte> records_;
    std::vector<std::int32_t> tokens_;
    std::vector<std::int64_t> positions_;
    std::vector<std::uint8_t> active_;
    ZeroedArray<std::byte> chunk_records_;  // of a part of a prompt
    std::atomic<bool>* cancelled_;          // may be NULL
};

}  // namespace molkv
