// A session: texts that grow over several calls. It adds to Sequences the ids that were chosen but not run yet.
#pragma once

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "model.h"
#include "sequences.h"

namespace molkv {

// B texts. The first ids of a text were run: their keys and values are in the KV cache. The others are pending: they
// are run before the text goes on. One thread at a time, but for `cancel`.
class Session {
 public:
    // max_length and prefill_chunk as for Sequences. Throws a request or memory error.
    Session(const Model& model, std::int64_t batch_size, std::int64_t max_length, std::int64_t prefill_chunk);

    [[nodiscard]] const Model& model() const { return model_; }
    [[nodiscard]] int batch_size() const { return static_cast<int>(texts_.size()); }
    [[nodiscard]] std::int64_t max_length() const { return max_length_; }
    // The ids of a text: at most max_length + 1, since the last one may be pending.
    [[nodiscard]] std::span<const std::int32_t> ids(std::int64_t sequence) const;

    // The operations of Sequences, for texts with pending ids. Each ends a running generation.
    std::span<const float> prefill(std::int64_t sequence, std::span<const std::int32_t> ids);
    std::span<const float> decode(std::span<const std::int32_t> ids, std::span<const std::uint8_t> active);
    void rewind(std::int64_t sequence, std::int64_t length);
    int fork(std::int64_t sequence);
    void restore(std::int64_t sequence, const std::string& path);
    void save(std::int64_t sequence, const std::string& path);

    // Make the running call, or the next one, throw a cancelled error. Any thread or signal handler may call it.
    void cancel() { cancelled_ = true; }

    // For a generation. `begin_generation` returns a number; another change of the session ends this generation.
    std::uint64_t begin_generation() { return latest_ = ++generation_; }
    [[nodiscard]] bool is_current(std::uint64_t generation) const { return generation == generation_; }
    // Forget a cancellation that came too late for a generation, unless a later generation has begun.
    void forget_cancellation(std::uint64_t generation) {
        if (generation == latest_) cancelled_ = false;
    }
    // Append ids, which may be none if the text is not empty. Returns the logits of the last position [V]. A failure
    // leaves the text as it was.
    std::span<const float> append(int sequence, std::span<const std::int32_t> ids);
    // Append an id that is pending.
    void push(int sequence, std::int32_t id) { text(sequence).push_back(id); }
    // Run the last id of the active texts [B], the only one that is pending. Returns logits [B, V]. Allocates nothing.
    std::span<const float> step(std::span<const std::uint8_t> active);
    // Do not use the KV cache again: it may hold wrong numbers, such as NaN. All ids become pending.
    void drop_state() { sound_ = false; }

 private:
    [[nodiscard]] std::vector<std::int32_t>& text(std::int64_t sequence) {
        return texts_[static_cast<std::size_t>(sequence)];
    }
    [[nodiscard]] std::span<const std::int32_t> pending(int sequence);
    [[nodiscard]] int check_sequence(std::int64_t sequence) const;
    void make_sound();
    template <typename Call>
    auto guarded(const Call& call);

    const Model& model_;
    std::int64_t prefill_chunk_;
    std::atomic<bool> cancelled_ = false;
    static_assert(std::atomic<bool>::is_always_lock_free, "signal handlers set it");
    std::unique_ptr<Sequences> sequences_;
    std::int64_t max_length_;
    std::vector<std::vector<std::int32_t>> texts_;  // [B]
    std::vector<std::int32_t> last_ids_;            // [B]: of a step
    std::vector<std::int32_t> joined_;              // pending ids and a prompt
    std::uint64_t generation_ = 0;
    std::uint64_t latest_ = 0;  // the number of the latest generation
    bool sound_ = true;
};

}  // namespace molkv
