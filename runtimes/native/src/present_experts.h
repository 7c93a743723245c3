// The experts of models whose positions see the experts of their own token only: MoLE, Gemma 4, and models without
// experts.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include "experts.h"
#include "zeroed_array.h"

namespace molkv {

// Keeps nothing between steps, and passes the vectors of the records to the graph.
class PresentExperts : public ExpertState {
 public:
    PresentExperts(const Bundle& bundle, const RecordDecoder& decoder, int batch_size);

    [[nodiscard]] std::int64_t lookback() const override { return 0; }
    [[nodiscard]] std::int64_t block_length() const override { return 0; }
    [[nodiscard]] std::vector<HostInput> decode_inputs() override;
    void decode(int sequence, std::int64_t position, std::span<const std::byte> record) override;
    void begin(const Part& part) override;
    void add(std::int64_t index, std::span<const std::byte> record) override;
    [[nodiscard]] std::vector<HostInput> inputs() override;
    void finish(int /*sequence*/, std::int64_t /*end*/) override {}
    void restore(int /*sequence*/, std::int64_t /*position*/, std::span<const std::byte> /*record*/) override {}

 private:
    // One input for each vector of a record and each layer.
    struct Input {
        std::string name;
        std::size_t layer;   // index in the record
        std::size_t vector;  // index in the record
        std::vector<std::int64_t> shape;
        std::size_t numbers;
        ZeroedArray<std::byte> step;    // [B, numbers]
        std::vector<std::byte> prompt;  // [T, numbers]
    };
    void put(const Input& input, std::span<const std::byte> record, std::byte* into);
    [[nodiscard]] HostInput bound(const Input& input, std::int64_t sequences, std::int64_t length,
                                  std::byte* data) const;

    const RecordDecoder& decoder_;
    std::int64_t batch_size_;
    DType dtype_;
    std::vector<Input> inputs_;
    std::vector<float> scratch_;  // the numbers of one vector, before they are rounded to float16
    std::int64_t length_ = 0;     // positions of the current part
};

}  // namespace molkv
