// Golden vectors: files that are built here, and the comparison of logits with them.
#include <array>
#include <cmath>
#include <cstring>
#include <limits>

#include "check.h"
#include "golden.h"

namespace test = molkv::test;
using molkv::GoldenErrors;
using molkv::GoldenText;

namespace {

constexpr std::size_t vocab_size = 3;

// The content of a file of one text with two tokens, vocab_size 3 and one greedy token.
struct Content {
    std::string version = "2";
    std::vector<float> limits = {0.5F, 0.25F};
    std::vector<std::int32_t> input_ids = {1, 2};
    std::vector<std::int32_t> top_ids = {2, 1, 0, 0, 1, 2};
    std::vector<float> top_logits = {3, 2, 1, 6, 5, 4};
    std::vector<float> projection = std::vector<float>(16, 1.0F);
    std::vector<std::int32_t> greedy_ids = {0};
    std::string last_name = "texts.0.greedy_ids";

    [[nodiscard]] std::string file() const {
        std::string header = "{\"__metadata__\": {\"golden_version\": \"" + version + "\"}";
        std::string data;
        append(header, data, "limits", limits, "F32", molkv::text(limits.size()));
        append(header, data, "texts.0.input_ids", input_ids, "I32", molkv::text(input_ids.size()));
        append(header, data, "texts.0.top_ids", top_ids, "I32", "2, 3");
        append(header, data, "texts.0.top_logits", top_logits, "F32", "2, 3");
        append(header, data, "texts.0.projection", projection, "F32", "2, 8");
        append(header, data, last_name, greedy_ids, "I32", molkv::text(greedy_ids.size()));
        header += "}";
        const std::uint64_t size = header.size();
        std::string length(8, '\0');
        std::memcpy(length.data(), &size, sizeof size);
        return length + header + data;
    }

    template <typename Number>
    static void append(std::string& header, std::string& data, const std::string& name,
                       const std::vector<Number>& numbers, const char* dtype, const std::string& shape) {
        const std::size_t begin = data.size();
        data.append(reinterpret_cast<const char*>(numbers.data()), numbers.size() * sizeof(Number));
        header += molkv::text(", \"", name, "\": {\"dtype\": \"", dtype, "\", \"shape\": [", shape,
                              "], \"data_offsets\": [", begin, ", ", data.size(), "]}");
    }
};

void refused(const Content& content, const char* part, std::int64_t most_tokens = 2) {
    test::refused([&] { molkv::parse_golden(content.file(), "g", vocab_size, most_tokens); }, molkv::Kind::bundle, part,
                  part);
}

void check_parser() {
    const molkv::Golden golden = molkv::parse_golden(Content().file(), "g", vocab_size, 2);
    test::equal(golden.max_abs, 0.5, "max_abs");
    test::equal(golden.texts.size(), std::size_t{1}, "texts");
    test::that(golden.texts[0].top_ids == Content().top_ids && golden.texts[0].top_count == 3, "top_ids");
    test::equal(golden.limits(0.5).max_abs, 1.0, "max_abs with a tolerance");
    test::equal(golden.limits(0.5).relative_l2, 0.75, "relative_l2 with a tolerance");  // all projections are 1
    const auto changed = [](auto change) {
        Content content;
        change(content);
        return content;
    };
    refused(changed([](Content& c) { c.version = "1"; }), "golden_version: found 1");
    refused(changed([](Content& c) { c.limits[0] = -1; }), "limits: found -1");
    refused(changed([](Content& c) { c.limits[1] = std::nanf(""); }), "limits: found nan");
    refused(changed([](Content& c) { c.limits = {1}; }), "limits: found F32 [1]");
    refused(changed([](Content& c) { c.input_ids[0] = 3; }), "texts.0.input_ids: found 3");
    refused(changed([](Content& c) { c.top_ids[5] = -1; }), "texts.0.top_ids: found -1");
    refused(changed([](Content& c) { c.input_ids = {1}; }), "texts.0.top_ids: found I32 [2, 3], expected I32 [1, 3]");
    refused(changed([](Content& c) { c.input_ids = {}; }), "found 0 tokens");
    refused(changed([](Content& c) { c.greedy_ids = {0, 1}; }), "2 greedy tokens");
    refused(changed([](Content& c) { c.last_name = "texts.1.greedy_ids"; }), "no tensor texts.0.greedy_ids");
    refused(Content(), "at most 1", 1);
    test::refused([] { molkv::parse_golden("", "g", vocab_size, 2); }, molkv::Kind::bundle, "0 bytes", "no content");
}

// Return a text of one token with these logits. docs/bundle-format.md has the first hash; the others were computed in
// Python with the formula of this document.
GoldenText text_of(const std::vector<float>& logits) {
    constexpr std::array hashes = {0x514e28b7U, 0x30f4c306U, 0x85f0b427U};
    GoldenText text;
    text.input_ids = {0};
    text.top_count = vocab_size;
    text.top_ids = {2, 1, 0};
    text.top_logits = {logits[2], logits[1], logits[0]};
    for (unsigned r = 0; r < molkv::projections; r++) {
        double sum = 0;
        for (std::size_t v = 0; v < vocab_size; v++) sum += ((hashes[v] >> r) & 1U) != 0 ? -logits[v] : logits[v];
        text.projection.push_back(static_cast<float>(sum / std::sqrt(3.0)));
    }
    return text;
}

void check_errors() {
    const GoldenText text = text_of({1, 2, 3});
    const molkv::GoldenLimits limits{0.01, 0.01};
    const auto failure = [&](const std::vector<float>& logits) {
        GoldenErrors errors(vocab_size, limits);
        errors.add(text, 0, logits);
        return errors.failure();
    };
    GoldenErrors same(vocab_size, limits);
    same.add(text, 0, std::vector<float>{1, 2, 3});
    test::equal(same.failure(), std::string(), "the same logits");
    test::that(same.max_abs_projection() < 1e-6, "the same projections");
    test::equal(same.positions(), std::size_t{1}, "positions");
    test::equal(same.certain_tokens(), std::size_t{1}, "certain tokens");
    test::equal(same.right_tokens(), std::size_t{1}, "right tokens");
    test::that(failure({1, 2, 3.009F}).empty(), "a difference within the limits");
    test::that(failure({1, 2.02F, 3}).find("of a logit") != std::string::npos, "a wrong logit");
    test::that(!failure({1, std::nanf(""), 3}).empty(), "NaN");
    GoldenErrors nan(vocab_size, limits);
    nan.add(text, 0, std::vector<float>{1, std::nanf(""), 3});
    nan.add(text, 0, std::vector<float>{1, 2, 3});
    test::that(std::isnan(nan.max_abs_logit()), "a NaN that a later position does not hide");
    test::that(!failure({1, 2, std::numeric_limits<float>::infinity()}).empty(), "infinity");
    // The two likeliest tokens are exchanged.
    GoldenErrors wrong(vocab_size, {0.4, 10});
    wrong.add(text_of({1, 2, 2.9F}), 0, std::vector<float>{1, 2.5F, 2.45F});
    test::that(wrong.failure().find("of a logit") != std::string::npos, "an exchanged token");
    test::equal(wrong.right_tokens(), std::size_t{0}, "a wrong token");
    GoldenErrors relative(vocab_size, {10, 0.01});
    relative.add(text, 0, std::vector<float>{1, 2, 3.5F});
    test::that(relative.failure().find("relative L2") != std::string::npos, "relative L2");
    // Two positions; the second is wrong.
    GoldenText two = text;
    for (auto* list : {&two.top_logits, &two.projection}) list->insert(list->end(), list->begin(), list->end());
    two.top_ids.insert(two.top_ids.end(), {2, 1, 0});
    GoldenErrors both(vocab_size, limits);
    both.add(two, 0, std::vector<float>{1, 2, 3, 1, 2, 4});
    test::equal(both.positions(), std::size_t{2}, "two positions");
    test::equal(both.max_abs_logit(), 1.0, "the difference at the second position");
}

}  // namespace

int main() {
    check_parser();
    check_errors();
    return test::finish();
}
