// Sampling against runtimes/conformance/sampling.json, and log-probabilities against a plain computation.
// Usage: test_sampling CONFORMANCE-FOLDER
#include <algorithm>
#include <bit>
#include <charconv>
#include <cmath>
#include <fstream>
#include <limits>
#include <map>
#include <sstream>

#include "check.h"
#include "json.h"
#include "logprobs.h"
#include "sampling.h"

using molkv::Json;
using molkv::JsonValue;
using molkv::Kind;
namespace test = molkv::test;

namespace {

constexpr std::int64_t most = std::numeric_limits<std::int64_t>::max();

template <typename Number>
Number number(std::string_view digits, int base) {
    Number value{};
    const auto* const end = digits.data() + digits.size();
    const auto result = std::from_chars(digits.data(), end, value, base);
    if (result.ec != std::errc() || result.ptr != end) molkv::fail(Kind::request, "found ", digits);
    return value;
}

std::uint32_t word(const JsonValue& value) {
    return number<std::uint32_t>(value.string(), 16);
}
double binary64(const JsonValue& value) {
    return std::bit_cast<double>(number<std::uint64_t>(value.string(), 16));
}

std::vector<float> logits_of(const JsonValue& value) {
    std::vector<float> logits;
    if (value.type() == JsonValue::Type::array) {
        for (const auto& item : value.items()) {
            const bool is_text = item.type() == JsonValue::Type::string;
            const float infinity = std::numeric_limits<float>::infinity();
            if (!is_text) logits.push_back(static_cast<float>(item.number()));
            if (is_text && item.string() == "NaN") logits.push_back(std::numeric_limits<float>::quiet_NaN());
            if (is_text && item.string() == "Infinity") logits.push_back(infinity);
            if (is_text && item.string() == "-Infinity") logits.push_back(-infinity);
        }
        return logits;
    }
    auto state = static_cast<std::uint32_t>(value["seed"].integer(0, most));
    const auto terms = value["terms"].integer(1, 8);
    const auto drop = static_cast<int>(value["drop"].integer(0, 31));
    for (std::int64_t left = value["size"].integer(1, most); left > 0; left--) {
        double sum = 0;
        for (std::int64_t term = 0; term < terms; term++) {
            state = 1664525U * state + 1013904223U;
            sum += state >> drop;
        }
        sum -= std::ldexp(static_cast<double>(terms), 31 - drop);
        logits.push_back(static_cast<float>(std::ldexp(sum, -static_cast<int>(value["shift"].integer(0, 60)))));
    }
    return logits;
}

molkv::SamplingParameters parameters_of(const JsonValue& fields) {
    molkv::SamplingParameters result;
    const std::map<std::string_view, double*> numbers = {{"temperature", &result.temperature},
                                                         {"top_p", &result.top_p},
                                                         {"min_p", &result.min_p},
                                                         {"repetition_penalty", &result.repetition_penalty},
                                                         {"presence_penalty", &result.presence_penalty},
                                                         {"frequency_penalty", &result.frequency_penalty}};
    for (const auto& field : fields.items()) {
        if (field.key() == "top_k") {
            result.top_k = field.integer(-most, most);
        } else if (field.key() == "seed") {
            result.seed = number<std::uint64_t>(field.string(), 10);  // refuses what does not fit
        } else if (field.key() == "logit_bias") {
            for (const auto& bias : field.items()) {
                result.logit_bias.emplace_back(number<std::int32_t>(bias.key(), 10), bias.number());
            }
        } else {
            *numbers.at(field.key()) = field.number();
        }
    }
    return result;
}

std::vector<std::int32_t> ids_of(const JsonValue& list) {
    std::vector<std::int32_t> ids;
    for (const auto& id : list.items()) ids.push_back(static_cast<std::int32_t>(id.integer(0, INT32_MAX)));
    return ids;
}

void check_parts(const JsonValue& root) {
    for (const auto& each : root["threefry"].items()) {
        const auto key = each["key"].items();
        const auto counter = each["counter"].items();
        const auto output = each["output"].items();
        const auto found = molkv::threefry(word(key[0]), word(key[1]), word(counter[0]), word(counter[1]));
        test::that(found == std::pair(word(output[0]), word(output[1])), each.path());
    }
    for (const auto& each : root["uniform"].items()) {
        const double u = molkv::uniform(number<std::uint64_t>(each["seed"].string(), 10),
                                        static_cast<std::uint32_t>(each["sequence"].integer(0, most)),
                                        static_cast<std::uint32_t>(each["position"].integer(0, most)));
        test::equal(u, binary64(each["u"]), each.path());
    }
    for (const auto& each : root["exp64"].items()) {
        const auto pair = each.items();
        test::equal(molkv::exp64(binary64(pair[0])), binary64(pair[1]), each.path());
    }
}

std::int32_t choice(const JsonValue& item, const std::vector<float>& logits) {
    const auto parameters = parameters_of(item["sampling"]);
    molkv::check_sampling(parameters, static_cast<std::int64_t>(logits.size()));
    molkv::Sampler sampler(parameters);
    const auto prompt = ids_of(item["prompt"]);
    const auto generated = ids_of(item["generated"]);
    const auto sequence = static_cast<std::uint32_t>(item["sequence"].integer(0, most));
    const auto chosen = sampler.choose(logits, prompt, generated, sequence);
    test::equal(sampler.choose(logits, prompt, generated, sequence), chosen, item.path() + ", a second time");
    return chosen;
}

void check_cases(const JsonValue& root) {
    std::map<std::string_view, std::vector<float>> logits;
    for (const auto& each : root["logits"].items()) logits[each.key()] = logits_of(each);
    for (const auto& item : root["cases"].items()) {
        const auto& own = logits.at(item["logits"].string());
        if (const auto error = item.find("error")) {
            const Kind kind = error->string() == "provider" ? Kind::provider : Kind::request;
            test::refused([&] { choice(item, own); }, kind, "found", item.path());
        } else {
            test::equal(choice(item, own), static_cast<std::int32_t>(item["token"].integer(0, most)), item.path());
        }
    }
}

void check_logprobs() {
    const std::vector<float> logits = {1, 3, -2, 3, 0.5F};
    double sum = 0;
    for (const float x : logits) sum += std::exp(static_cast<double>(x));
    std::vector<molkv_logprob> best;
    const double own = molkv::log_probabilities(logits, 4, 3, best);
    test::that(std::abs(own - (0.5 - std::log(sum))) < 1e-12, "the log-probability of the chosen token");
    test::equal(best.size(), 3U, "the number of likeliest tokens");
    const std::vector<std::int32_t> expected = {1, 3, 0};
    for (std::size_t i = 0; i < best.size(); i++) {
        const auto id = static_cast<std::size_t>(expected[i]);
        test::equal(best[i].id, expected[i], "an id of the likeliest tokens");
        test::that(std::abs(best[i].logprob - (static_cast<double>(logits[id]) - std::log(sum))) < 1e-12, "logprob");
    }
    molkv::log_probabilities(logits, 0, 5, best);
    test::equal(best.back().id, 2, "the least likely token");
    molkv::log_probabilities(logits, 0, 0, best);
    test::that(best.empty(), "no likeliest tokens");
}

void check_bias() {
    molkv::SamplingParameters twice;
    twice.logit_bias = {{1, 0.5}, {0, 1}, {1, 2}};
    test::refused([&] { molkv::check_sampling(twice, 3); }, Kind::request, "token id 1 a second time", "a bias twice");
    molkv::SamplingParameters wrong;
    wrong.temperature = std::numeric_limits<double>::quiet_NaN();
    test::refused([&] { molkv::check_sampling(wrong, 3); }, Kind::request, "temperature", "a temperature of NaN");
}

}  // namespace

int main(int count, char** arguments) {
    if (count != 2) {
        std::cerr << "usage: test_sampling CONFORMANCE-FOLDER\n";
        return 2;
    }
    const std::string path = std::string(arguments[1]) + "/sampling.json";
    std::ifstream file(path, std::ios::binary);
    std::ostringstream content;
    content << file.rdbuf();
    const Json json(content.str(), path, Kind::request);
    check_parts(json.root());
    check_cases(json.root());
    check_logprobs();
    check_bias();
    return test::finish();
}
