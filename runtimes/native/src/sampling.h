// Sampling, to the bit as docs/bundle-format.md, "Sampling", defines it.
#pragma once

#include <cstdint>
#include <span>
#include <utility>
#include <vector>

#include "manifest.h"

namespace molkv {

struct SamplingParameters {
    double temperature = 0;
    std::int64_t top_k = 0;
    double top_p = 1;
    double min_p = 0;
    double repetition_penalty = 1;
    double presence_penalty = 0;
    double frequency_penalty = 0;
    std::uint64_t seed = 0;
    std::vector<std::pair<std::int32_t, double>> logit_bias;
};

// Throw a request error if a parameter is out of its range, or an id of logit_bias outside the vocabulary.
void check_sampling(const SamplingParameters& parameters, std::int64_t vocab_size);

// Chooses tokens. Keeps its working memory, so that later choices of the same vocabulary allocate nothing.
class Sampler {
 public:
    explicit Sampler(SamplingParameters parameters) : parameters_(std::move(parameters)) {}

    // Return the next token for logits [V]. Throws a provider error if a logit is NaN or infinite.
    std::int32_t choose(std::span<const float> logits, std::span<const std::int32_t> prompt,
                        std::span<const std::int32_t> generated, std::uint32_t sequence);

 private:
    SamplingParameters parameters_;
    std::vector<double> x_;  // adjusted logits, then y, then weights
    std::vector<std::int32_t> order_;
    std::vector<std::int32_t> counts_;
};

// The parts of the definition, for tests.
double exp64(double y);
std::pair<std::uint32_t, std::uint32_t> threefry(std::uint32_t k0, std::uint32_t k1, std::uint32_t x0,
                                                 std::uint32_t x1);
double uniform(std::uint64_t seed, std::uint32_t sequence, std::uint32_t position);

}  // namespace molkv
