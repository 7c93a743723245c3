// The choice of the next token. Each operation is rounded on its own: compile with -ffp-contract=off.
#include "sampling.h"

#include <algorithm>
#include <array>
#include <bit>
#include <cmath>
#include <functional>
#include <string_view>

#include "error.h"

namespace molkv {

namespace {

constexpr double cutoff = -64;  // ids with a smaller y have weight 0

constexpr std::array<double, 12> coefficients = {1.0,
                                                 1.0,
                                                 0.5,
                                                 0x1.5555555554eb5p-3,
                                                 0x1.5555555553b0cp-5,
                                                 0x1.11111112d2ae2p-7,
                                                 0x1.6c16c179ff28ep-10,
                                                 0x1.a019f7c5fd11ep-13,
                                                 0x1.a019b39c36ee6p-16,
                                                 0x1.71f4b150fbc5cp-19,
                                                 0x1.28976591b6f1dp-22,
                                                 0x1.8abb61a62f2a1p-26};

void check_range(std::string_view name, double value, double least, double most) {
    if (value >= least && value <= most) return;
    fail(Kind::request, name, ": found ", value, ", expected ", least, " to ", most);
}

// The index of the largest number; of equal numbers, the first one.
template <typename Number>
std::int32_t largest(std::span<const Number> numbers) {
    return static_cast<std::int32_t>(std::max_element(numbers.begin(), numbers.end()) - numbers.begin());
}

void check_finite(std::span<const float> logits) {
    // A loop without branches, which the compiler vectorizes.
    constexpr std::uint32_t exponent = 0x7f800000;
    std::uint32_t wrong = 0;
    for (const float logit : logits) {
        wrong |= static_cast<std::uint32_t>((std::bit_cast<std::uint32_t>(logit) & exponent) == exponent);
    }
    if (wrong == 0) return;
    const auto* const found = std::find_if_not(logits.data(), logits.data() + logits.size(),
                                               [](float logit) { return std::isfinite(logit); });
    fail(Kind::provider, "the logit of token id ", found - logits.data(), ": found ", *found,
         ", expected a finite number; the weights are damaged or the provider computes wrong numbers: run the "
         "self-test");
}

}  // namespace

void check_sampling(const SamplingParameters& parameters, std::int64_t vocab_size) {
    if (parameters.temperature != 0 && !(parameters.temperature >= 1e-6 && parameters.temperature <= 1e6)) {
        fail(Kind::request, "temperature: found ", parameters.temperature, ", expected 0, or 1e-06 to 1e+06");
    }
    if (parameters.top_k < 0 || parameters.top_k > INT32_MAX) {
        fail(Kind::request, "top_k: found ", parameters.top_k, ", expected 0 to ", INT32_MAX);
    }
    if (!(parameters.top_p > 0 && parameters.top_p <= 1)) {
        fail(Kind::request, "top_p: found ", parameters.top_p, ", expected more than 0, to 1");
    }
    check_range("min_p", parameters.min_p, 0, 1);
    check_range("repetition_penalty", parameters.repetition_penalty, 0.01, 100);
    check_range("presence_penalty", parameters.presence_penalty, -2, 2);
    check_range("frequency_penalty", parameters.frequency_penalty, -2, 2);
    std::vector<std::int32_t> ids;
    for (const auto& [id, bias] : parameters.logit_bias) {
        if (id < 0 || id >= vocab_size) {
            fail(Kind::request, "logit_bias: found token id ", id, ", expected 0 to ", vocab_size - 1,
                 " (the vocabulary)");
        }
        check_range("logit_bias", bias, -1e6, 1e6);
        ids.push_back(id);
    }
    std::sort(ids.begin(), ids.end());
    if (const auto twice = std::adjacent_find(ids.begin(), ids.end()); twice != ids.end()) {
        fail(Kind::request, "logit_bias: found token id ", *twice, " a second time, expected each id once");
    }
}

void Sampler::reserve(std::size_t vocab_size) {
    y_.reserve(vocab_size);
    ids_.reserve(vocab_size);
    weights_.reserve(vocab_size);
    sorted_.reserve(vocab_size);
    counts_.resize(vocab_size);
}

std::int32_t Sampler::choose(std::span<const float> logits, std::span<const std::int32_t> prompt,
                             std::span<const std::int32_t> generated, std::uint32_t sequence) {
    check_finite(logits);
    const auto& p = parameters_;
    const bool adjusted =
        !p.logit_bias.empty() || p.repetition_penalty != 1 || p.presence_penalty != 0 || p.frequency_penalty != 0;
    if (p.temperature == 0 && !adjusted) return largest(logits);
    adjust(logits, prompt, generated);
    if (p.temperature == 0) return largest(std::span<const double>(y_));
    scale();
    keep_top_k();
    keep_top_p();
    weights_.resize(y_.size());
    std::transform(y_.begin(), y_.end(), weights_.begin(), exp64);
    keep_min_p();
    const std::size_t position = prompt.size() + generated.size();
    return draw(uniform(p.seed, sequence, static_cast<std::uint32_t>(position)));
}

void Sampler::adjust(std::span<const float> logits, std::span<const std::int32_t> prompt,
                     std::span<const std::int32_t> generated) {
    y_.assign(logits.begin(), logits.end());
    for (const auto& [id, bias] : parameters_.logit_bias) y_[static_cast<std::size_t>(id)] += bias;
    counts_.resize(logits.size());
    if (parameters_.repetition_penalty != 1) {
        penalize_repetition(prompt);
        penalize_repetition(generated);
        for (const auto id : prompt) counts_[static_cast<std::size_t>(id)] = 0;
        for (const auto id : generated) counts_[static_cast<std::size_t>(id)] = 0;
    }
    if (parameters_.presence_penalty != 0 || parameters_.frequency_penalty != 0) penalize_frequency(generated);
}

void Sampler::penalize_repetition(std::span<const std::int32_t> ids) {
    const double penalty = parameters_.repetition_penalty;
    for (const auto id : ids) {
        const auto index = static_cast<std::size_t>(id);
        if (counts_[index]++ > 0) continue;
        y_[index] = y_[index] > 0 ? y_[index] / penalty : y_[index] * penalty;
    }
}

void Sampler::penalize_frequency(std::span<const std::int32_t> generated) {
    for (const auto id : generated) counts_[static_cast<std::size_t>(id)]++;
    for (const auto id : generated) {
        const auto index = static_cast<std::size_t>(id);
        if (counts_[index] == 0) continue;
        const double frequency = parameters_.frequency_penalty * counts_[index];
        y_[index] = (y_[index] - frequency) - parameters_.presence_penalty;
        counts_[index] = 0;
    }
}

// Compute y, and keep the ids with a weight above 0. The others change no sum and are never drawn.
void Sampler::scale() {
    const double most = *std::max_element(y_.begin(), y_.end());
    ids_.resize(y_.size());
    std::size_t kept = 0;
    for (std::size_t id = 0; id < y_.size(); id++) {
        const double y = (y_[id] - most) / parameters_.temperature;
        y_[kept] = y;
        ids_[kept] = static_cast<std::int32_t>(id);
        if (y >= cutoff) kept++;
    }
    y_.resize(kept);
    ids_.resize(kept);
}

void Sampler::keep_top_k() {
    const auto count = static_cast<std::size_t>(parameters_.top_k);
    if (count == 0 || count >= y_.size()) return;
    sorted_.assign(y_.begin(), y_.end());
    const auto border = sorted_.begin() + static_cast<std::ptrdiff_t>(count - 1);
    std::nth_element(sorted_.begin(), border, sorted_.end(), std::greater<>());
    keep_largest(*border, count);
}

void Sampler::keep_top_p() {
    if (parameters_.top_p == 1) return;
    double total = 0;
    for (const double y : y_) total += exp64(y);
    const double bound = parameters_.top_p * total;
    // A heap sorts only the candidates that are summed. Equal y have equal weights, so their order has no effect.
    sorted_.assign(y_.begin(), y_.end());
    std::make_heap(sorted_.begin(), sorted_.end());
    double sum = 0;
    for (auto end = sorted_.end(); end != sorted_.begin(); --end) {
        std::pop_heap(sorted_.begin(), end);
        const double border = *(end - 1);
        sum += exp64(border);
        if (sum >= bound) {
            keep_largest(border, static_cast<std::size_t>(sorted_.end() - end) + 1);
            return;
        }
    }
}

void Sampler::keep_min_p() {
    if (parameters_.min_p == 0) return;
    std::size_t kept = 0;
    for (std::size_t index = 0; index < weights_.size(); index++) {
        weights_[kept] = weights_[index];
        ids_[kept] = ids_[index];
        if (weights_[index] >= parameters_.min_p) kept++;
    }
    weights_.resize(kept);
    ids_.resize(kept);
}

// Keep the `count` candidates with the largest y; of equal y, those with the lowest ids. `border` is the smallest y
// kept.
void Sampler::keep_largest(double border, std::size_t count) {
    const auto above =
        static_cast<std::size_t>(std::count_if(y_.begin(), y_.end(), [border](double y) { return y > border; }));
    std::size_t equal = count - above;  // candidates with y = border that are kept
    std::size_t kept = 0;
    for (std::size_t index = 0; index < y_.size(); index++) {
        const double y = y_[index];
        if (y < border || (y == border && equal == 0)) continue;
        if (y == border) equal--;
        y_[kept] = y;
        ids_[kept++] = ids_[index];
    }
    y_.resize(kept);
    ids_.resize(kept);
}

std::int32_t Sampler::draw(double u) const {
    double total = 0;
    for (const double weight : weights_) total += weight;
    const double bound = u * total;
    double sum = 0;
    for (std::size_t index = 0; index < weights_.size(); index++) {
        sum += weights_[index];
        if (sum > bound) return ids_[index];
    }
    return ids_.back();  // not reached: u * total rounds to less than total
}

double exp64(double y) {
    if (y < cutoff) return 0;
    const double shifted = y * 0x1.71547652b82fep+0 + 0.5;
    auto n = static_cast<std::int32_t>(shifted);  // towards zero
    if (n > shifted) n--;                         // the floor
    const double whole = n;
    const double r = (y - whole * 0x1.62e42feep-1) - whole * 0x1.a39ef35793c76p-33;
    double p = coefficients.back();
    for (std::size_t k = coefficients.size() - 1; k-- > 0;) p = p * r + coefficients[k];
    // p is about 1 and n at least -93, so adding n to the exponent multiplies p by 2^n.
    return std::bit_cast<double>(std::bit_cast<std::int64_t>(p) +
                                 static_cast<std::int64_t>(n) * (std::int64_t{1} << 52));
}

std::pair<std::uint32_t, std::uint32_t> threefry(std::uint32_t k0, std::uint32_t k1, std::uint32_t x0,
                                                 std::uint32_t x1) {
    constexpr std::array<int, 8> rotations = {13, 15, 26, 6, 17, 29, 16, 24};
    const std::array<std::uint32_t, 3> keys = {k0, k1, k0 ^ k1 ^ 0x1bd11bdaU};
    x0 += k0;
    x1 += k1;
    for (std::uint32_t round = 0; round < 20; round++) {
        x0 += x1;
        x1 = std::rotl(x1, rotations[round % 8]) ^ x0;
        if (round % 4 != 3) continue;
        const std::uint32_t turn = (round + 1) / 4;
        x0 += keys[turn % 3];
        x1 += keys[(turn + 1) % 3] + turn;
    }
    return {x0, x1};
}

double uniform(std::uint64_t seed, std::uint32_t sequence, std::uint32_t position) {
    const auto [high, low] =
        threefry(static_cast<std::uint32_t>(seed), static_cast<std::uint32_t>(seed >> 32), sequence, position);
    return (static_cast<double>(high >> 5) * 0x1p26 + static_cast<double>(low >> 6)) * 0x1p-53;
}

}  // namespace molkv
