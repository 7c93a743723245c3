// Golden vectors (docs/bundle-format.md, "Golden vectors"): results of the source model for a few texts.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

namespace molkv {

constexpr std::size_t projections = 8;  // sums over the logits of a position

struct GoldenText {
    std::vector<std::int32_t> input_ids;   // [T]
    std::size_t top_count = 0;             // K
    std::vector<std::int32_t> top_ids;     // [T, K]
    std::vector<float> top_logits;         // [T, K]
    std::vector<float> projection;         // [T, 8]
    std::vector<std::int32_t> greedy_ids;  // [G]
};

struct Golden {
    double max_abs = 0;
    double relative_l2 = 0;
    std::vector<GoldenText> texts;
};

// Parse the content of a golden file. Throws a bundle error.
Golden parse_golden(std::string content, const std::string& where, std::int64_t vocab_size, std::int64_t most_tokens);

}  // namespace molkv
