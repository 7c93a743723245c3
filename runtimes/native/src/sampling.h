// Sampling, to the bit as docs/bundle-format.md, "Sampling", defines it.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <utility>
#include <vector>

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

    // Allocate the working memory for a vocabulary.
    void reserve(std::size_t vocab_size);
    // Return the next token for logits [V]. All ids are inside the vocabulary. Throws a provider error if a logit is
    // NaN or infinite.
    std::int32_t choose(std::span<const float> logits, std::span<const std::int32_t> prompt,
                        std::span<const std::int32_t> generated, std::uint32_t sequence);

 private:
    void adjust(std::span<const float> logits, std::span<const std::int32_t> prompt,
                std::span<const std::int32_t> generated);
    void penalize_repetition(std::span<const std::int32_t> ids);
    void penalize_frequency(std::span<const std::int32_t> generated);
    void scale();
    void keep_top_k();
    void keep_top_p();
    void keep_min_p();
    void keep_largest(double border, std::size_t count);
    [[nodiscard]] std::int32_t draw(double u) const;

    SamplingParameters parameters_;
    std::vector<double> y_;             // adjusted logits [V]; from `scale` on y of the candidates
    std::vector<std::int32_t> ids_;     // candidates, ascending
    std::vector<double> weights_;       // of the candidates
    std::vector<double> sorted_;        // y of the candidates, partly sorted
    std::vector<std::int32_t> counts_;  // [V]: occurrences of ids; all 0 between two calls
};

// The parts of the definition, for tests.
double exp64(double y);
std::pair<std::uint32_t, std::uint32_t> threefry(std::uint32_t k0, std::uint32_t k1, std::uint32_t x0,
                                                 std::uint32_t x1);
double uniform(std::uint64_t seed, std::uint32_t sequence, std::uint32_t position);

}  // namespace molkv
