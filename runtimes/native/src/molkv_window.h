// The expert window of MoLKV: the experts of the last W positions of each sequence.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "experts.h"
#include "rotary.h"
#include "zeroed_array.h"

namespace molkv {

// Position p is in slot p mod W of a ring for each layer and sequence. A key is rotated by its position once, when it
// enters the window. In an int8 window a value is d codes and a scale: those of an int8 store are copied, values of
// other stores are rounded.
//
// Prefill uses blocks of C positions. A block holds the experts of the R = C + W - 1 positions that its positions see,
// so memory and work grow with T * W. Records are decoded directly into the blocks.
class ExpertWindow : public ExpertState {
 public:
    ExpertWindow(const Bundle& bundle, const RecordDecoder& decoder, int batch_size, std::int64_t max_length);

    // Return the bytes of the rings of one sequence.
    static std::size_t bytes(const Bundle& bundle, std::int64_t max_length);

    [[nodiscard]] std::int64_t lookback() const override { return window_ - 1; }
    [[nodiscard]] std::int64_t block_length() const override { return window_; }
    [[nodiscard]] std::vector<HostInput> decode_inputs() override;
    void decode(int sequence, std::int64_t position, std::span<const std::byte> record) override;
    void begin(const Part& part) override;
    void add(std::int64_t index, std::span<const std::byte> record) override;
    [[nodiscard]] std::vector<HostInput> inputs() override;
    void finish(int sequence, std::int64_t end) override;
    void restore(int sequence, std::int64_t position, std::span<const std::byte> record) override;

 private:
    // Keys, values, or scales of values: rows of N vectors for each position.
    struct Rows {
        std::string name;  // of the input, without the layer
        DType dtype = DType::float32;
        std::int64_t vector_size = 0;   // numbers of a vector; of a scale 1
        std::size_t bytes = 0;          // of a row
        ZeroedArray<std::byte> ring;    // [L, B, W, bytes]
        ZeroedArray<std::byte> blocks;  // [L, capacity, bytes], each layer with `blocks * R` rows in use
    };
    // Where the experts of one position and layer are: keys, values, scales.
    using Place = std::array<std::byte*, 3>;

    void add_rows(const std::string& name, DType dtype, std::int64_t vector_size);
    [[nodiscard]] std::byte* slot(const Rows& rows, std::size_t layer, int sequence, std::int64_t position) const;
    [[nodiscard]] std::byte* block_row(const Rows& rows, std::size_t layer, std::int64_t row) const;
    void reserve_blocks(const Part& part, std::int64_t count);
    void fill_lookback(const Part& part);
    void put(std::span<const std::byte> record, std::size_t layer, std::int64_t position, const Place& place);
    void put_value(std::span<const std::byte> record, std::size_t layer, const Place& place);
    void fill_mask();
    [[nodiscard]] std::vector<HostInput> named(std::byte* mask, std::int64_t blocks, std::int64_t block,
                                               std::int64_t reach, bool rings) const;

    const RecordDecoder& decoder_;
    std::vector<std::int64_t> layers_;
    std::size_t batch_size_;
    std::int64_t window_;
    std::int64_t experts_;  // N
    std::int64_t key_size_;
    std::int64_t value_size_;
    DType dtype_;
    float hidden_;
    std::size_t key_vector_ = 0;  // indices of Family::record_vectors
    std::size_t value_vector_ = 0;
    std::optional<RotaryTable> rotary_;
    std::vector<Rows> rows_;                // keys, values and, in an int8 window, scales
    ZeroedArray<std::byte> mask_;           // [B, 1, W*N]
    std::vector<std::size_t> visible_;      // [B]: number of experts at the start of a row of mask_ that are visible
    std::vector<float> scratch_;            // the numbers of one vector of a record, before they are rounded
    std::size_t capacity_ = 0;              // rows of a layer in the blocks
    std::int64_t latest_ = 0;               // the row of position `end - W` of the current part
    Part part_;                             // the current part
    std::int64_t block_ = 1;                // C
    std::int64_t blocks_ = 0;               // number of blocks
    std::vector<std::byte> prefill_mask_;   // [blocks, C, R*N]
    std::array<std::int64_t, 3> mask_for_;  // first position, C and blocks of prefill_mask_
};

}  // namespace molkv
