// The comparison of logits with golden vectors.
#include <algorithm>
#include <cmath>
#include <limits>

#include "error.h"
#include "golden.h"

namespace molkv {

namespace {

using Sums = std::array<double, projections>;

// The finalizer of MurmurHash3.
std::uint32_t hash(std::uint32_t h) {
    h ^= h >> 16U;
    h *= 0x85ebca6bU;
    h ^= h >> 13U;
    h *= 0xc2b2ae35U;
    h ^= h >> 16U;
    return h;
}

// The signs of the eight projections, by the low byte of a token's hash.
constexpr std::array<Sums, 256> make_signs() {
    std::array<Sums, 256> signs{};
    for (std::size_t byte = 0; byte < signs.size(); byte++) {
        for (std::size_t r = 0; r < projections; r++) signs[byte][r] = ((byte >> r) & 1U) != 0 ? -1.0 : 1.0;
    }
    return signs;
}

constexpr std::array<Sums, 256> signs = make_signs();

// Return the larger number, or NaN if one of them is NaN.
double larger(double before, double found) {
    return std::isnan(found) || found > before ? found : before;
}

}  // namespace

GoldenErrors::GoldenErrors(std::size_t vocab_size, GoldenLimits limits) : hashes_(vocab_size), limits_(limits) {
    for (std::size_t token = 0; token < vocab_size; token++) {
        hashes_[token] = static_cast<std::uint8_t>(hash(static_cast<std::uint32_t>(token + 1)) & 255U);
    }
}

void GoldenErrors::add(const GoldenText& text, std::size_t first_position, std::span<const float> logits) {
    const std::size_t vocab_size = hashes_.size();
    for (std::size_t row = 0; (row + 1) * vocab_size <= logits.size(); row++) {
        add_position(text, first_position + row, logits.subspan(row * vocab_size, vocab_size));
    }
}

void GoldenErrors::add_position(const GoldenText& text, std::size_t position, std::span<const float> logits) {
    const auto ids = std::span(text.top_ids).subspan(position * text.top_count, text.top_count);
    const auto tops = std::span(text.top_logits).subspan(position * text.top_count, text.top_count);
    for (std::size_t k = 0; k < text.top_count; k++) {
        const double found = logits[static_cast<std::size_t>(ids[k])];
        max_abs_logit_ = larger(max_abs_logit_, std::abs(found - tops[k]));
    }
    const Sums projected = project(logits);
    for (std::size_t r = 0; r < projections; r++) {
        const double expected = text.projection[position * projections + r];
        const double difference = projected[r] - expected;
        max_abs_projection_ = larger(max_abs_projection_, std::abs(difference));
        difference_ += difference * difference;
        size_ += expected * expected;
    }
    if (text.top_count > 1 && static_cast<double>(tops[0]) - tops[1] > 2 * limits_.max_abs) {
        certain_tokens_++;
        const auto best = std::max_element(logits.begin(), logits.end()) - logits.begin();
        if (best == ids[0]) right_tokens_++;
    }
    positions_++;
}

std::array<double, projections> GoldenErrors::project(std::span<const float> logits) const {
    Sums sums{};
    for (std::size_t token = 0; token < logits.size(); token++) {
        const Sums& sign = signs[hashes_[token]];
        const double logit = logits[token];
        for (std::size_t r = 0; r < projections; r++) sums[r] += sign[r] * logit;
    }
    const double scale = std::sqrt(static_cast<double>(logits.size()));
    for (double& sum : sums) sum /= scale;
    return sums;
}

double GoldenErrors::relative_l2() const {
    if (size_ > 0) return std::sqrt(difference_ / size_);
    return difference_ == 0 ? 0 : std::numeric_limits<double>::infinity();
}

std::string GoldenErrors::failure() const {
    // Each condition is also true if the difference is NaN.
    if (!(max_abs_logit_ <= limits_.max_abs)) {
        return text("largest difference of a logit ", max_abs_logit_, ", expected at most ", limits_.max_abs);
    }
    if (!(max_abs_projection_ <= limits_.max_abs)) {
        return text("largest difference of a projection ", max_abs_projection_, ", expected at most ", limits_.max_abs);
    }
    if (!(relative_l2() <= limits_.relative_l2)) {
        return text("relative L2 ", relative_l2(), ", expected at most ", limits_.relative_l2);
    }
    if (right_tokens_ != certain_tokens_) {
        return text(right_tokens_, " of ", certain_tokens_, " certain tokens are right, expected all");
    }
    return "";
}

}  // namespace molkv
