// The calls of the static profiles: one sequence, and a fixed number of positions. The host writes the KV cache.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "calls.h"
#include "rotary.h"

namespace molkv {

// A rotation of positions that static graphs take as two inputs.
struct RotaryInputs {
    std::string prefix;  // of the names `{prefix}rotary_cos` and `{prefix}rotary_sin`
    RotaryTable table;
};

// One static graph with T = `length` positions, and the memory of its inputs and outputs.
class StaticGraph {
 public:
    StaticGraph(const Model& model, const GraphSession& session, const KvCache& cache);

    [[nodiscard]] const GraphSession& session() const { return session_; }
    [[nodiscard]] std::int64_t length() const { return session_.file().length; }
    // Bind all inputs and outputs for a sequence. Of `experts`, the part number `offset` is bound. `logits`: [V].
    void bind(BoundCall& call, const KvCache& cache, int sequence, std::span<const HostInput> experts,
              std::size_t offset, float* logits) const;
    // Write the embedding of position `index`.
    void embed(std::int64_t index, std::span<const std::byte> record);
    // Write the other inputs of `count` positions from `start` on. Padding repeats the last position.
    void place(std::int64_t start, std::int64_t count, std::span<RotaryInputs> rotations);
    // Write the new keys and values of the first `count` positions to the cache.
    void write_back(KvCache& cache, int sequence, std::int64_t start, std::int64_t count) const;

 private:
    // Inputs with one row for each position.
    struct Rows {
        std::string name;
        std::size_t numbers;  // of a row
        ZeroedArray<std::byte> data;
    };
    void add_rows(const std::string& name, std::int64_t numbers);
    void pad(const Rows& rows, std::int64_t count) const;
    void make_mask();
    void show_slots(std::int64_t count);
    [[nodiscard]] std::byte* row(const Rows& rows, std::int64_t index) const;
    [[nodiscard]] std::byte* present(std::size_t tensor) const;
    [[nodiscard]] void* input_data(const std::string& name) const;

    const Model& model_;
    const GraphSession& session_;
    DType dtype_;
    std::size_t context_;             // S
    std::vector<Rows> rows_;          // embeddings, then cosines and sines of each rotation
    ZeroedArray<std::byte> mask_;     // [G*T, S+T]
    std::size_t mask_rows_ = 0;       // G*T
    std::size_t shown_ = 0;           // number of slots of the cache that the mask shows
    ZeroedArray<std::byte> present_;  // [tensors, Hkv, T, head_dim], since all caches have the same shape
    std::size_t present_bytes_;       // of one tensor
    std::vector<float> scratch_;      // numbers of a row, before they are rounded
};

class StaticCalls : public Calls {
 public:
    // chunk: graphs for more positions are not used; 0: no limit.
    StaticCalls(const Model& model, int batch_size, std::int64_t chunk);

    [[nodiscard]] std::vector<Part> parts(int sequence, std::int64_t start, std::int64_t length,
                                          bool all_logits) const override;
    void begin(const Part& part) override;
    void add(std::int64_t index, std::span<const std::byte> record) override;
    void run(std::span<float> logits) override;
    void decode(std::span<const std::int64_t> positions, std::span<const std::uint8_t> active,
                std::span<const std::byte> records) override;

 private:
    struct Prompt {
        std::unique_ptr<StaticGraph> graph;
        BoundCall call;
    };
    [[nodiscard]] std::vector<Part> without_logits(int sequence, std::int64_t start, std::int64_t length) const;

    std::vector<std::int64_t> lengths_;  // of the graphs for more than one position in use, ascending
    std::vector<RotaryInputs> rotations_;
    std::vector<Prompt> prompts_;   // by the length of the graph, ascending; the first one has length 1
    std::vector<BoundCall> steps_;  // [B], which share the memory of the first graph
    Prompt* current_ = nullptr;
    Part part_;
};

}  // namespace molkv
