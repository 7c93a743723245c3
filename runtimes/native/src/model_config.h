// The field `model` of a manifest (docs/bundle-format.md, "model").
#pragma once

#include "json.h"
#include "manifest.h"

namespace molkv {

// Parse and check the configuration of a model. Throws a bundle error.
ModelConfig parse_model(const JsonValue& model);

}  // namespace molkv
