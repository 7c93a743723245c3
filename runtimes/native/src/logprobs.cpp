// Log-probabilities: x - m - ln(sum of exp(x_j - m)), where m is the largest logit.
#include "logprobs.h"

#include <algorithm>
#include <cmath>

namespace molkv {

double log_probabilities(std::span<const float> logits, std::int32_t chosen, std::size_t count,
                         std::vector<molkv_logprob>& best) {
    const double most = *std::max_element(logits.begin(), logits.end());
    double sum = 0;
    for (const float logit : logits) sum += std::exp(static_cast<double>(logit) - most);
    const double shift = most + std::log(sum);

    // `best` is a heap with the worst of the best tokens in front.
    const auto better = [](const molkv_logprob& a, const molkv_logprob& b) {
        return a.logprob != b.logprob ? a.logprob > b.logprob : a.id < b.id;
    };
    best.clear();
    for (std::size_t id = 0; id < logits.size() && count > 0; id++) {
        const molkv_logprob next = {static_cast<std::int32_t>(id), static_cast<double>(logits[id])};
        if (best.size() == count) {
            if (!better(next, best.front())) continue;
            std::pop_heap(best.begin(), best.end(), better);
            best.pop_back();
        }
        best.push_back(next);
        std::push_heap(best.begin(), best.end(), better);
    }
    std::sort_heap(best.begin(), best.end(), better);
    for (auto& token : best) token.logprob -= shift;
    return static_cast<double>(logits[static_cast<std::size_t>(chosen)]) - shift;
}

}  // namespace molkv
