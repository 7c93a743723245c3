// The layout of a record (docs/bundle-format.md, "Record"), which follows from the model and the dtype of the table.
#pragma once

#include <string>
#include <vector>

#include "json.h"
#include "manifest.h"

namespace molkv {

constexpr std::int64_t checksum_bytes = 4;  // at the end of each record

// Parse the field `fields` of a table or of a shard's header.
std::vector<RecordField> parse_record_fields(const JsonValue& fields);

// Return the dtype with this name if numbers in records can have it: float32, float16, int8, int4 or nf4. Refuses
// other values.
DType parse_record_dtype(const JsonValue& name);

// Check that `fields` and `stride` of a table are those that follow from the model (check 8). `where` is the path of
// the manifest. Throws a bundle error.
void check_record(const ModelConfig& config, const Table& table, const std::string& where);

}  // namespace molkv
