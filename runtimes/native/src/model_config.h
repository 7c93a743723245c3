// The field `model` of a manifest (docs/bundle-format.md, "model").
#pragma once

#include "json.h"
#include "manifest.h"

namespace molkv {

// Parse and check the configuration of a model. Throws a bundle error.
ModelConfig parse_model(const JsonValue& model);

// The checks of fields that several families have. Each throws a bundle error.

// Return an integer from `least` to 2^31 - 1.
std::int64_t parse_size(const JsonValue& value, std::int64_t least);
// Return an even integer from 2 to 2^31 - 2: the size of rotated vectors.
std::int64_t parse_even_size(const JsonValue& value);
// Return a number above 0.
double parse_positive(const JsonValue& value);
// Return `num_key_value_heads`, of which `num_attention_heads` is a multiple.
std::int64_t parse_key_value_heads(const JsonValue& model, const ModelConfig& config);

}  // namespace molkv
