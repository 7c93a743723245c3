// The self-test: the results of a bundle on this device against its golden vectors (docs/bundle-format.md).
#pragma once

#include <optional>
#include <string>

#include "error.h"
#include "model.h"

namespace molkv {

struct SelfTest {
    std::string report;            // one line for each check
    std::optional<Error> failure;  // of the first check that failed: kind bundle for damage, provider for wrong numbers
};

// Hash every file of the bundle, then run its golden texts in four ways: prefill, decode, a batch, greedy text.
SelfTest selftest(const Model& model);

}  // namespace molkv
