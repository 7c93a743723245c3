// A short test of whether a provider computes right numbers: the beginning of the longest golden text.
#include <algorithm>
#include <cmath>

#include "golden.h"
#include "golden_pieces.h"
#include "model.h"
#include "sequences.h"

namespace molkv {

namespace {

constexpr std::int64_t prompt_length = 20;  // tokens, for a graph of any length
constexpr int steps = 2;

double largest_difference(const GoldenText& text, std::size_t position, std::span<const float> logits) {
    double largest = 0;
    for (std::size_t k = position * text.top_count; k < (position + 1) * text.top_count; k++) {
        const double found = logits[static_cast<std::size_t>(text.top_ids[k])];
        const double difference = std::abs(found - static_cast<double>(text.top_logits[k]));
        if (!(difference <= largest)) largest = difference;  // also if it is NaN
        if (std::isnan(largest)) break;
    }
    return largest;
}

}  // namespace

void probe(const Model& model) {
    const auto golden = model.bundle().golden();
    const auto& text = *std::max_element(golden.texts.begin(), golden.texts.end(), [](const auto& a, const auto& b) {
        return a.input_ids.size() < b.input_ids.size();
    });
    const double limit = golden.limits(model.preset().max_abs).max_abs;
    auto pieces = static_pieces(model);
    if (pieces.empty()) pieces.push_back(prompt_length);
    pieces.insert(pieces.end(), steps, 1);

    const std::span<const std::int32_t> ids = text.input_ids;
    Sequences sequences(model, 1, static_cast<std::int64_t>(ids.size()), 0);
    std::size_t start = 0;
    for (const auto size : pieces) {
        const auto piece = ids.subspan(start, std::min(static_cast<std::size_t>(size), ids.size() - start));
        if (piece.empty()) return;
        const auto logits = size > 1 ? sequences.prefill(0, piece) : sequences.decode(piece);
        start += piece.size();
        const double difference = largest_difference(text, start - 1, logits);
        if (difference <= limit) continue;
        fail(Kind::provider, "provider ", model.preset().name, " computes wrong numbers: at position ", start - 1,
             " of a golden text a logit differs by ", difference, " from that of the source model, expected at most ",
             limit, "; use another provider or other options of this provider; the self-test of ",
             model.bundle().where(), " has details");
    }
}

}  // namespace molkv
