// The conversion of stored records to float32 (docs/bundle-format.md, "Numbers"), to the bit.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include "bundle.h"
#include "half.h"

namespace molkv {

// Decodes parts of a record into memory of the caller. Allocates nothing.
class RecordDecoder {
 public:
    explicit RecordDecoder(const Bundle& bundle);

    // Write the input embedding [hidden_size] of a record as float32.
    void embedding(std::span<const std::byte> record, std::span<float> out) const;
    // Write vector number `vector` (of Family::record_vectors) of expert layer number `layer` (an index into
    // config.expert_layers) as float32, in the order of its numbers.
    void vector(std::span<const std::byte> record, std::size_t layer, std::size_t vector, std::span<float> out) const;
    // Whether this vector is stored as int8 codes with one float32 scale for each row.
    [[nodiscard]] bool has_codes(std::size_t vector) const;
    // Return the codes and the scales of such a vector, as views of the record.
    [[nodiscard]] std::span<const std::int8_t> codes(std::span<const std::byte> record, std::size_t layer,
                                                     std::size_t vector) const;
    void scales(std::span<const std::byte> record, std::size_t layer, std::size_t vector, std::span<float> out) const;

 private:
    struct Place {
        DType dtype = DType::float32;
        std::size_t offset = 0;  // bytes from the start of a record
        std::size_t count = 0;   // numbers
        DType scale_dtype = DType::float32;
        std::size_t scale_offset = 0;
        std::size_t scale_count = 0;  // 0: not quantized
    };
    static Place place(const RecordField& stored);
    static Place place(const RecordField& scale, const RecordField& codes);
    static void decode(const Place& place, std::span<const std::byte> record, std::span<float> out);

    Place embedding_;
    std::vector<std::vector<Place>> places_;  // [layer][vector]
};

}  // namespace molkv
