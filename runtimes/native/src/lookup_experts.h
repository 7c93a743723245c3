// The configuration that MoLE and MoLKV share.
#pragma once

#include "json.h"
#include "manifest.h"

namespace molkv {

// Read the fields of a model of type "mole" or "molkv", and check them. Throws a bundle error.
void parse_lookup_experts(const JsonValue& model, ModelConfig& config);

}  // namespace molkv
