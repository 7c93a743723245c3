// The layout of a record: computed part by part, and compared with the fields of the manifest.
#include "record.h"

#include <limits>

#include "family.h"

namespace molkv {

namespace {

constexpr std::int64_t alignment = 4;  // of each part, in bytes

// How the numbers of a table are stored.
struct Storage {
    DType plain;         // embeddings, keys, and values that are not quantized
    DType scale;         // has no effect in a table that is not quantized
    std::int64_t group;  // numbers that share a scale; 0: all numbers of a row
    bool quantized;
};

Storage storage(DType dtype) {
    switch (dtype) {
        case DType::int8:
            return {DType::float16, DType::float32, 0, true};
        case DType::int4:
            return {DType::float16, DType::float16, 32, true};
        case DType::nf4:
            return {DType::float16, DType::float16, 64, true};
        default:
            return {dtype, dtype, 0, false};
    }
}

std::int64_t round_up(std::int64_t size, std::int64_t unit) {
    return (size + unit - 1) / unit * unit;
}

// Compares the parts of a record with the fields of a table, one after the other. So a hostile configuration cannot
// make it allocate more than the manifest holds.
class Comparison {
 public:
    Comparison(const Table& table, std::string where) : table_(table), where_(std::move(where)) {}

    void part(const std::string& name, DType dtype, const std::vector<std::int64_t>& shape) {
        const RecordField wanted{name, dtype, shape, end_};
        if (next_ == table_.fields.size() || table_.fields[next_] != wanted) {
            fail(Kind::bundle, where_, ".fields: found ", next_ < table_.fields.size() ? "another field " : "no field ",
                 next_, ", expected ", name, " with dtype ", dtype_name(dtype), " at offset ", end_,
                 ", which follows from the model");
        }
        next_++;
        end_ = round_up(end_ + bytes(dtype, shape), alignment);
    }

    void finish() const {
        if (next_ != table_.fields.size()) {
            fail(Kind::bundle, where_, ".fields: found ", table_.fields.size(), " fields, expected ", next_,
                 ", which follow from the model");
        }
        const std::int64_t size = end_ + checksum_bytes;
        const std::int64_t stride = round_up(size, size >= 16'384 ? 4096 : 64);
        if (table_.stride != stride) {
            fail(Kind::bundle, where_, ".stride: found ", table_.stride, ", expected ", stride);
        }
    }

 private:
    // Return the bytes of a part. A part that is larger than the record in the manifest is an error, so that no product
    // overflows.
    [[nodiscard]] std::int64_t bytes(DType dtype, const std::vector<std::int64_t>& shape) const {
        std::int64_t count = 1;
        for (const std::int64_t size : shape) {
            if (size > 0 && count > 2 * table_.stride / size) too_small();
            count *= size;
        }
        const auto total = static_cast<std::int64_t>(dtype_bytes(dtype, static_cast<std::size_t>(count)));
        if (total > table_.stride - end_) too_small();
        return total;
    }

    [[noreturn]] void too_small() const {
        fail(Kind::bundle, where_, ".stride: found ", table_.stride,
             ", expected more bytes for the fields of a record");
    }

    const Table& table_;
    std::string where_;
    std::size_t next_ = 0;
    std::int64_t end_ = 0;
};

void compare_vector(Comparison& comparison, const RecordVector& vector, std::int64_t layer, DType dtype,
                    const std::string& where) {
    const Storage stored = storage(dtype);
    const std::string name = text("expert_", vector.name, ".", layer);
    if (!vector.quantized || !stored.quantized) {
        comparison.part(name, stored.plain, vector.shape);
        return;
    }
    const std::int64_t row = vector.shape.back();
    const std::int64_t group = stored.group == 0 ? row : stored.group;
    if (row % group != 0) {
        fail(Kind::bundle, where, ".dtype: found ", dtype_name(dtype), " for rows of ", row,
             " numbers, expected rows of a multiple of ", group, " numbers");
    }
    std::vector<std::int64_t> scales = vector.shape;
    scales.back() = row / group;
    comparison.part(text("expert_", vector.scale_name, ".", layer), stored.scale, scales);
    comparison.part(name, dtype, vector.shape);
}

}  // namespace

DType parse_record_dtype(const JsonValue& name) {
    for (const DType dtype : {DType::float32, DType::float16, DType::int8, DType::int4, DType::nf4}) {
        if (name.string() == dtype_name(dtype)) return dtype;
    }
    name.refuse(name.string().substr(0, 40), "float32, float16, int8, int4 or nf4");
}

std::vector<RecordField> parse_record_fields(const JsonValue& fields) {
    constexpr std::int64_t most = std::numeric_limits<std::int64_t>::max();
    std::vector<RecordField> found;
    for (const JsonValue& field : fields.list()) {
        field.expect_fields({"name", "dtype", "shape", "offset"});
        RecordField parsed{std::string(field["name"].string()), parse_record_dtype(field["dtype"]), {}, 0};
        for (const JsonValue& size : field["shape"].list()) parsed.shape.push_back(size.integer(0, most));
        parsed.offset = field["offset"].integer(0, most);
        found.push_back(std::move(parsed));
    }
    return found;
}

void check_record(const ModelConfig& config, const Table& table, const std::string& where) {
    const std::string place = where + ": tables.experts";
    Comparison comparison(table, place);
    comparison.part("embedding", storage(table.dtype).plain, {config.hidden_size});
    const std::vector<RecordVector> vectors = find_family(config.model_type)->record_vectors(config);
    for (const std::int64_t layer : config.expert_layers) {
        for (const RecordVector& vector : vectors) compare_vector(comparison, vector, layer, table.dtype, place);
    }
    comparison.finish();
}

}  // namespace molkv
