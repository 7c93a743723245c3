// The calls of the graphs: how positions become inputs, and what is kept of the outputs.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "experts.h"
#include "kv_cache.h"
#include "model.h"

namespace molkv {

// The KV caches and the experts of B sequences, and the calls that change them. A prompt is run part by part: `begin`,
// `add` for each record, `run`; and `finish` after the last part. The state of the sequence changes only in `finish`.
class Calls {
 public:
    virtual ~Calls() = default;
    [[nodiscard]] KvCache& cache() { return cache_; }
    [[nodiscard]] ExpertState& experts() { return *experts_; }

    // Divide `length` positions of a prompt into parts. Only the last part keeps logits, those of its last position;
    // with `all_logits` the parts together keep the logits of each position once, in order.
    [[nodiscard]] virtual std::vector<Part> parts(int sequence, std::int64_t start, std::int64_t length,
                                                  bool all_logits) const = 0;
    virtual void begin(const Part& part) = 0;
    // Add the record of position `index` of the part.
    virtual void add(std::int64_t index, std::span<const std::byte> record) = 0;
    // Compute the part. `logits` receives [keep, V].
    virtual void run(std::span<float> logits) = 0;
    // The logits of the latest decode step, [B, V].
    [[nodiscard]] std::span<const float> step_logits() const { return step_logits_.span(); }
    void finish(int sequence, std::int64_t end) { experts_->finish(sequence, end); }

    // Compute one position of each active sequence. At least one is active. Allocates nothing.
    // positions: [B], also of the other sequences. active: [B]. records: those of the active sequences, in order.
    virtual void decode(std::span<const std::int64_t> positions, std::span<const std::uint8_t> active,
                        std::span<const std::byte> records) = 0;

 protected:
    Calls(const Model& model, int batch_size, std::int64_t slots);
    [[nodiscard]] std::span<const std::byte> record(std::span<const std::byte> records, std::size_t number) const {
        return records.subspan(number * model_.store().stride(), model_.store().stride());
    }
    [[nodiscard]] std::size_t vocab_size() const { return static_cast<std::size_t>(model_.config().vocab_size); }
    [[nodiscard]] std::size_t hidden_size() const { return static_cast<std::size_t>(model_.config().hidden_size); }

    const Model& model_;
    KvCache cache_;
    std::unique_ptr<ExpertState> experts_;
    ZeroedArray<float> step_logits_;  // [B, V]
};

// The calls of profile "cpu". Past and present caches are the same memory, so the graph writes in place.
class DynamicCalls : public Calls {
 public:
    // chunk: the most positions of a part.
    DynamicCalls(const Model& model, int batch_size, std::int64_t max_length, std::int64_t chunk);

    [[nodiscard]] std::vector<Part> parts(int sequence, std::int64_t start, std::int64_t length,
                                          bool all_logits) const override;
    void begin(const Part& part) override;
    void add(std::int64_t index, std::span<const std::byte> record) override;
    void run(std::span<float> logits) override;
    void decode(std::span<const std::int64_t> positions, std::span<const std::uint8_t> active,
                std::span<const std::byte> records) override;

 private:
    void bind_step();
    void bind_cache(BoundCall& call, int sequence, std::int64_t sequences);
    void place(std::span<const std::int64_t> positions, std::span<const std::uint8_t> active,
               std::span<const std::byte> records);

    // The inputs of a call that do not depend on the family.
    struct Inputs {
        std::vector<float> embeds;            // [B, T, d]
        std::vector<std::int64_t> positions;  // [B, T]
        std::vector<std::int32_t> seqlens;    // [B]
        std::int32_t total = 0;
        std::int64_t logits_to_keep = 1;
    };
    void bind_inputs(BoundCall& call, Inputs& inputs, std::int64_t sequences, std::int64_t length) const;

    std::int64_t max_length_;
    std::int64_t chunk_;
    bool has_positions_;
    const GraphSession& graph_;
    // An input or output of the graph, and the tensor of the cache that it is bound to.
    struct CacheName {
        std::string name;
        std::size_t tensor;
    };
    std::vector<CacheName> past_;
    std::vector<CacheName> present_;  // several of a tensor, if layers share a cache
    Inputs step_;                     // of a decode step
    BoundCall step_call_;
    Inputs prompt_;  // of a part of a prompt
    BoundCall prompt_call_;
    int prompt_sequence_ = -1;  // the sequence whose caches are bound in prompt_call_
    Part part_;
};

// Return the most positions of a part, if the caller gives no limit: 128, or the length of the longest static graph.
std::int64_t default_chunk(const Model& model);

// Return the calls for the profile of the model. slots: the length of the KV caches. chunk: 0 for the default.
std::unique_ptr<Calls> make_calls(const Model& model, int batch_size, std::int64_t slots, std::int64_t chunk);

}  // namespace molkv
