// Golden vectors (docs/bundle-format.md, "Golden vectors"): results of the source model for a few texts.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <span>
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

// The largest differences that rounding can cause.
struct GoldenLimits {
    double max_abs = 0;      // of each logit and each projection
    double relative_l2 = 0;  // of all projections together
};

struct Golden {
    double max_abs = 0;
    double relative_l2 = 0;
    std::vector<GoldenText> texts;

    // Return the limits for a provider whose own rounding changes each logit by at most `tolerance`.
    [[nodiscard]] GoldenLimits limits(double tolerance = 0) const;
};

// Parse the content of a golden file. `where` is its path; `most_tokens` is the context length. Throws a bundle error.
Golden parse_golden(std::string content, const std::string& where, std::int64_t vocab_size, std::int64_t most_tokens);

// The differences between logits and golden vectors, for one way to run the texts.
//
// The likeliest token of a position is certain if its golden logit is more than 2 * max_abs above the next one: errors
// within the limits cannot make another token likelier.
class GoldenErrors {
 public:
    GoldenErrors(std::size_t vocab_size, GoldenLimits limits);

    // Compare the logits [n, V] of the positions of a text from `first_position` on. The text must have these
    // positions.
    void add(const GoldenText& text, std::size_t first_position, std::span<const float> logits);

    [[nodiscard]] std::size_t positions() const { return positions_; }
    [[nodiscard]] double max_abs_logit() const { return max_abs_logit_; }
    [[nodiscard]] double max_abs_projection() const { return max_abs_projection_; }
    // ||difference|| / ||golden|| over all projections so far.
    [[nodiscard]] double relative_l2() const;
    [[nodiscard]] std::size_t certain_tokens() const { return certain_tokens_; }
    [[nodiscard]] std::size_t right_tokens() const { return right_tokens_; }  // certain, and the same here
    // Return "" if all differences are within the limits; else the first limit that is exceeded, with both numbers.
    // Greedy texts are not part of this comparison.
    [[nodiscard]] std::string failure() const;

 private:
    void add_position(const GoldenText& text, std::size_t position, std::span<const float> logits);
    [[nodiscard]] std::array<double, projections> project(std::span<const float> logits) const;

    std::vector<std::uint8_t> hashes_;  // [V]: the eight signs of each token
    GoldenLimits limits_;
    std::size_t positions_ = 0;
    double max_abs_logit_ = 0;
    double max_abs_projection_ = 0;
    double difference_ = 0;  // sums of squares
    double size_ = 0;
    std::size_t certain_tokens_ = 0;
    std::size_t right_tokens_ = 0;
};

}  // namespace molkv
