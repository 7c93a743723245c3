// The decoding of records: each number of a quantized vector is its code (or the level of its code) times its scale.
#include "record_decoder.h"

#include <array>
#include <cstring>

namespace molkv {

namespace {

// The levels of nf4 (QLoRA, arXiv 2305.14314, appendix E).
constexpr std::array<float, 16> nf4_levels = {-1.0F,
                                              -0.6961928009986877F,
                                              -0.5250730514526367F,
                                              -0.39491748809814453F,
                                              -0.28444138169288635F,
                                              -0.18477343022823334F,
                                              -0.09105003625154495F,
                                              0.0F,
                                              0.07958029955625534F,
                                              0.16093020141124725F,
                                              0.24611230194568634F,
                                              0.33791524171829224F,
                                              0.44070982933044434F,
                                              0.5626170039176941F,
                                              0.7229568362236023F,
                                              1.0F};

// Return the part of a record at an offset as numbers. Parts begin at multiples of 4 bytes of a record, and the memory
// of records is aligned to 4 bytes or more.
template <typename T>
std::span<const T> numbers(std::span<const std::byte> record, std::size_t offset, std::size_t count) {
    return {reinterpret_cast<const T*>(record.data() + offset), count};
}

void read_floats(DType dtype, std::span<const std::byte> record, std::size_t offset, std::span<float> out) {
    if (dtype == DType::float16) {
        half_to_float(numbers<std::uint16_t>(record, offset, out.size()), out);
    } else {
        std::memcpy(out.data(), record.data() + offset, out.size_bytes());
    }
}

float read_float(DType dtype, std::span<const std::byte> record, std::size_t offset, std::size_t index) {
    if (dtype == DType::float16) return half_to_float(numbers<std::uint16_t>(record, offset, index + 1)[index]);
    return numbers<float>(record, offset, index + 1)[index];
}

void decode_int8(const std::int8_t* codes, float scale, std::span<float> out) {
    for (std::size_t i = 0; i < out.size(); i++) out[i] = static_cast<float>(codes[i]) * scale;
}

void decode_int4(const std::uint8_t* codes, float scale, std::span<float> out) {
    for (std::size_t i = 0; i < out.size() / 2; i++) {
        out[2 * i] = static_cast<float>((codes[i] & 15) - 8) * scale;
        out[2 * i + 1] = static_cast<float>((codes[i] >> 4) - 8) * scale;
    }
}

void decode_nf4(const std::uint8_t* codes, float scale, std::span<float> out) {
    std::array<float, 16> products{};
    for (std::size_t code = 0; code < products.size(); code++) products[code] = nf4_levels[code] * scale;
    for (std::size_t i = 0; i < out.size() / 2; i++) {
        out[2 * i] = products[codes[i] & 15U];
        out[2 * i + 1] = products[codes[i] >> 4U];
    }
}

std::size_t count(const RecordField& field) {
    std::size_t product = 1;
    for (const std::int64_t size : field.shape) product *= static_cast<std::size_t>(size);
    return product;
}

}  // namespace

// Opening a bundle compared fields and stride with those that follow from the model (check 8). So the fields are in
// this order here, and their shapes and offsets are inside the record.
RecordDecoder::RecordDecoder(const Bundle& bundle) : embedding_(place(bundle.table().fields.front())) {
    const auto vectors = bundle.family().record_vectors(bundle.config());
    const DType dtype = bundle.table().dtype;
    const bool quantized = dtype != DType::float32 && dtype != DType::float16;
    auto next = bundle.table().fields.begin() + 1;
    for (std::size_t layer = 0; layer < bundle.config().expert_layers.size(); layer++) {
        auto& places = places_.emplace_back();
        for (const RecordVector& vector : vectors) {
            const RecordField& first = *next++;
            places.push_back(quantized && vector.quantized ? place(first, *next++) : place(first));
        }
    }
}

RecordDecoder::Place RecordDecoder::place(const RecordField& stored) {
    Place found;
    found.dtype = stored.dtype;
    found.offset = static_cast<std::size_t>(stored.offset);
    found.count = count(stored);
    return found;
}

RecordDecoder::Place RecordDecoder::place(const RecordField& scale, const RecordField& codes) {
    Place found = place(codes);
    found.scale_dtype = scale.dtype;
    found.scale_offset = static_cast<std::size_t>(scale.offset);
    found.scale_count = count(scale);
    return found;
}

void RecordDecoder::decode(const Place& place, std::span<const std::byte> record, std::span<float> out) {
    if (place.scale_count == 0) {
        read_floats(place.dtype, record, place.offset, out);
        return;
    }
    const std::size_t group = place.count / place.scale_count;
    for (std::size_t i = 0; i < place.scale_count; i++) {
        const float scale = read_float(place.scale_dtype, record, place.scale_offset, i);
        const std::span<float> part = out.subspan(i * group, group);
        const std::byte* codes = record.data() + place.offset + dtype_bytes(place.dtype, i * group);
        if (place.dtype == DType::int8) {
            decode_int8(reinterpret_cast<const std::int8_t*>(codes), scale, part);
        } else if (place.dtype == DType::int4) {
            decode_int4(reinterpret_cast<const std::uint8_t*>(codes), scale, part);
        } else {
            decode_nf4(reinterpret_cast<const std::uint8_t*>(codes), scale, part);
        }
    }
}

void RecordDecoder::embedding(std::span<const std::byte> record, std::span<float> out) const {
    decode(embedding_, record, out);
}

void RecordDecoder::vector(std::span<const std::byte> record, std::size_t layer, std::size_t vector,
                           std::span<float> out) const {
    decode(places_[layer][vector], record, out);
}

bool RecordDecoder::has_codes(std::size_t vector) const {
    return !places_.empty() && places_.front()[vector].dtype == DType::int8;
}

std::span<const std::int8_t> RecordDecoder::codes(std::span<const std::byte> record, std::size_t layer,
                                                  std::size_t vector) const {
    const Place& place = places_[layer][vector];
    return numbers<std::int8_t>(record, place.offset, place.count);
}

void RecordDecoder::scales(std::span<const std::byte> record, std::size_t layer, std::size_t vector,
                           std::span<float> out) const {
    const Place& place = places_[layer][vector];
    read_floats(place.scale_dtype, record, place.scale_offset, out);
}

}  // namespace molkv
