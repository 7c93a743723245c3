// The state of a family: what the host keeps between steps, and how records become inputs of the graph.
// molkv_window.cpp has the window of MoLKV, present_experts.cpp the experts of MoLE and Gemma 4; experts.cpp has the
// list.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "bundle.h"
#include "record_decoder.h"

namespace molkv {

// A part of a prompt: the positions that one call of a graph computes.
struct Part {
    int sequence = 0;
    std::int64_t start = 0;   // position of the first token
    std::int64_t length = 0;  // number of tokens
    std::int64_t rows = 0;    // positions of a static graph, with padding; 0: as many as tokens
    bool follows = false;     // whether the part before it was the previous call of this prompt
    std::int64_t keep = 0;    // positions at the end whose logits are wanted
    bool writes = true;       // whether to write keys and values to the KV cache; false: it already has them
};

// An input of a graph in host memory: float32 or int8, in static graphs the dtype of the KV cache.
struct HostInput {
    std::string name;
    DType dtype;
    std::vector<std::int64_t> shape;
    void* data;
};

// The experts of B sequences.
class ExpertState {
 public:
    virtual ~ExpertState() = default;
    // Positions before a position whose experts it sees (W - 1), which a rewind must restore.
    [[nodiscard]] virtual std::int64_t lookback() const = 0;
    // A chunk of a prompt is at most this long, or a multiple of it; 0: any length.
    [[nodiscard]] virtual std::int64_t block_length() const = 0;

    // The inputs of a decode step, bound once: blocks = B.
    [[nodiscard]] virtual std::vector<HostInput> decode_inputs() = 0;
    // Enter the record of one position of one sequence. Allocates nothing.
    virtual void decode(int sequence, std::int64_t position, std::span<const std::byte> record) = 0;

    // Prefill: begin a part, add its records in order, then take the inputs. Memory grows if needed, and is reused.
    virtual void begin(const Part& part) = 0;
    virtual void add(std::int64_t index, std::span<const std::byte> record) = 0;
    [[nodiscard]] virtual std::vector<HostInput> inputs() = 0;
    // After the last part of a prompt that ends before position `end`: keep the experts of the last positions.
    virtual void finish(int sequence, std::int64_t end) = 0;
    // Enter the record of an earlier position again, after a rewind, copy or restore.
    virtual void restore(int sequence, std::int64_t position, std::span<const std::byte> record) = 0;
};

// The value of a masked score: -inf in profile "cpu"; -10000 in static graphs, since some compilers refuse -inf.
float hidden_score(const Graph& graph);
// The dtype of floating-point inputs: float32 in profile "cpu", that of the KV cache in static graphs.
DType input_dtype(const Graph& graph);
inline bool is_static(const Graph& graph) {
    return graph.files.front().length > 0;
}

// Return a new state for the family of a bundle. Throws a memory error.
std::unique_ptr<ExpertState> make_expert_state(const Bundle& bundle, const RecordDecoder& decoder, int batch_size,
                                               std::int64_t max_length);

// Return the bytes of that state for one sequence.
std::size_t expert_state_bytes(const Bundle& bundle, std::int64_t max_length);

}  // namespace molkv
