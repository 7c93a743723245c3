// Log-probabilities of tokens (docs/bundle-format.md, "Text").
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "molkv.h"

namespace molkv {

// Return the log-probability of token `chosen`, from the logits [V] alone.
// best: receives the `count` likeliest tokens, likeliest first; of equal logits, the lower ids first. No memory is
// allocated if its capacity is at least `count`, which is at most V.
double log_probabilities(std::span<const float> logits, std::int32_t chosen, std::size_t count,
                         std::vector<molkv_logprob>& best);

}  // namespace molkv
