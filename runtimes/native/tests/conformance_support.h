// What the cases of runtimes/conformance have in common: options, results, comparisons, and changed copies of files.
#pragma once

#include <charconv>
#include <cmath>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <functional>
#include <map>
#include <memory>
#include <sstream>
#include <stdexcept>
#include <string>
#include <string_view>
#include <vector>

#include "error.h"
#include "handles.h"
#include "json.h"

namespace molkv::test {

namespace fs = std::filesystem;
using Ids = std::vector<std::int32_t>;

// A case that has a wrong result.
class Wrong : public std::runtime_error {
 public:
    using std::runtime_error::runtime_error;
};

template <typename... Parts>
[[noreturn]] void wrong(const Parts&... parts) {
    throw Wrong(text(parts...));
}

inline std::string show(const Ids& ids) {
    std::string result = "[";
    for (const auto id : ids) result += text(result.size() > 1 ? ", " : "", id);
    return result + "]";
}

inline Ids ids_of_json(const JsonValue& list) {
    Ids ids;
    for (const auto& id : list.items()) ids.push_back(static_cast<std::int32_t>(id.integer(INT32_MIN, INT32_MAX)));
    return ids;
}

// A number that does not fit into the type of the C API cannot be passed: this program then refuses the request.
template <typename Number>
Number parsed(std::string_view digits) {
    Number value{};
    const auto* const end = digits.data() + digits.size();
    const auto result = std::from_chars(digits.data(), end, value);
    if (result.ec != std::errc() || result.ptr != end) molkv::fail(Kind::request, "found ", digits);
    return value;
}

// Sampling parameters of a case, with the memory of its biases.
struct Sampling {
    explicit Sampling(const JsonValue& fields) {
        const std::map<std::string_view, double*> numbers = {{"temperature", &sampling.temperature},
                                                             {"top_p", &sampling.top_p},
                                                             {"min_p", &sampling.min_p},
                                                             {"repetition_penalty", &sampling.repetition_penalty},
                                                             {"presence_penalty", &sampling.presence_penalty},
                                                             {"frequency_penalty", &sampling.frequency_penalty}};
        sampling.size = sizeof(sampling);
        check(molkv_sampling_defaults(nullptr, &sampling));
        for (const auto& field : fields.items()) {
            if (field.key() == "top_k") {
                sampling.top_k = static_cast<std::int32_t>(field.integer(INT32_MIN, INT32_MAX));
            } else if (field.key() == "seed") {
                sampling.seed = parsed<std::uint64_t>(field.string());
            } else if (field.key() == "logit_bias") {
                for (const auto& bias : field.items()) {
                    biases.push_back({parsed<std::int32_t>(bias.key()), bias.number()});
                }
            } else {
                *numbers.at(field.key()) = field.number();
            }
        }
        sampling.logit_bias = biases.data();
        sampling.logit_bias_count = biases.size();
    }

    molkv_sampling sampling = {};
    std::vector<molkv_logit_bias> biases;
};

// The generation options of a case, with the memory that they point to.
class Options {
 public:
    // end_ids: whether the end ids of the bundle end a text; otherwise those of the case.
    Options(const JsonValue& item, std::int64_t max_new_tokens, bool end_ids) {
        options_.size = sizeof(options_);
        options_.max_new_tokens = static_cast<std::int32_t>(max_new_tokens);
        if (const auto fields = item.find("sampling")) {
            sampling_ = std::make_unique<Sampling>(*fields);
            options_.sampling = &sampling_->sampling;
        }
        if (const auto ids = item.find("stop_ids")) stop_ids_ = ids_of_json(*ids);
        options_.stop_id_count = stop_ids_.size();
        stop_ids_.push_back(-1);  // so that the list of no ids is not NULL
        if (!end_ids) options_.stop_ids = stop_ids_.data();
        if (const auto stop = item.find("stop")) {
            for (const auto& string : stop->items()) stop_.emplace_back(string.string());
        }
        for (const auto& string : stop_) stop_pointers_.push_back(string.c_str());
        options_.stop = stop_pointers_.data();
        options_.stop_count = stop_.size();
        if (const auto count = item.find("logprobs")) {
            options_.with_logprobs = 1;
            options_.best_count = static_cast<std::int32_t>(count->integer(0, INT32_MAX));
        }
    }
    Options(const Options&) = delete;
    Options& operator=(const Options&) = delete;
    [[nodiscard]] const molkv_generation_options& get() const { return options_; }

 private:
    molkv_generation_options options_ = {};
    std::unique_ptr<Sampling> sampling_;
    Ids stop_ids_;
    std::vector<std::string> stop_;
    std::vector<const char*> stop_pointers_;
};

// The continuation of one prompt.
struct Result {
    Ids ids;
    molkv_finish finish = MOLKV_FINISH_NONE;
    std::vector<std::string> pieces;
    std::vector<std::vector<double>> logprobs;  // of each token: its own, then those of the likeliest tokens
};

inline std::vector<Result> continued(molkv_session* session, const std::vector<molkv_prompt>& prompts,
                                     const Options& options) {
    std::vector<Result> results(prompts.size());
    const auto generation = generate(session, prompts, options.get());
    molkv_token token;
    while (next_token(generation.get(), token)) {
        auto& result = results.at(static_cast<std::size_t>(token.sequence));
        result.ids.push_back(token.id);
        result.finish = token.finish;
        if (token.text_length > 0) result.pieces.emplace_back(token.text, token.text_length);
        result.logprobs.push_back({token.logprob});
        for (std::size_t i = 0; i < token.best_count; i++) result.logprobs.back().push_back(token.best[i].logprob);
    }
    return results;
}

inline void compare(const Result& found, const JsonValue& expected, const std::string& place) {
    const auto ids = ids_of_json(expected["ids"]);
    const auto compared = static_cast<std::size_t>(expected["compared"].integer(0, INT32_MAX));
    if (found.ids.size() < compared ||
        !std::equal(ids.begin(), ids.begin() + static_cast<std::ptrdiff_t>(compared), found.ids.begin())) {
        wrong(place, ": found the ids ", show(found.ids), ", expected ", compared, " ids of ", show(ids));
    }
    if (compared < ids.size()) return;
    const auto finish = found.finish == MOLKV_FINISH_STOP ? "stop" : "length";
    if (found.ids != ids || finish != expected["finish"].string()) {
        wrong(place, ": found the ids ", show(found.ids), " and the end ", finish, ", expected ", show(ids), " and ",
              expected["finish"].string());
    }
}

inline void compare_logprobs(const Result& found, const JsonValue& expected, double limit) {
    const auto lists = expected["logprobs"].items();
    const auto compared = static_cast<std::size_t>(expected["compared"].integer(0, INT32_MAX));
    for (std::size_t token = 0; token < compared; token++) {
        const auto numbers = lists[token].items();
        const auto& own = found.logprobs.at(token);
        if (own.size() != numbers.size()) wrong("token ", token, ": found ", own.size(), " log-probabilities");
        for (std::size_t i = 0; i < own.size(); i++) {
            if (std::abs(own[i] - numbers[i].number()) <= limit) continue;
            wrong("token ", token, ": found the log-probability ", own[i], ", expected ", numbers[i].number());
        }
    }
}

inline void expect_error(const JsonValue& item, const std::function<void()>& call) {
    const std::map<molkv_status, std::string_view> names = {{MOLKV_ERROR_BUNDLE, "bundle"},
                                                            {MOLKV_ERROR_REQUEST, "request"},
                                                            {MOLKV_ERROR_PROVIDER, "provider"},
                                                            {MOLKV_ERROR_MEMORY, "memory"}};
    const auto expected = item["error"].string();
    try {
        call();
    } catch (const Failure& failure) {
        const auto name = names.find(failure.status());
        if (name != names.end() && name->second == expected && *failure.what() != '\0') return;
        wrong("found the status ", failure.status(), " (", failure.what(), "), expected an error of kind ", expected);
    } catch (const molkv::Error& error) {
        if (expected == "request") return;
        wrong("this program refused the request (", error.what(), "), expected an error of kind ", expected);
    }
    wrong("found no error, expected an error of kind ", expected);
}

// A folder for changed copies, which is removed at the end.
class TemporaryFolder {
 public:
    TemporaryFolder() {
        std::string name = (fs::temp_directory_path() / "molkv-conformance-XXXXXX").string();
        if (mkdtemp(name.data()) == nullptr) throw std::runtime_error("cannot make a temporary folder");
        path_ = name;
    }
    TemporaryFolder(const TemporaryFolder&) = delete;
    TemporaryFolder& operator=(const TemporaryFolder&) = delete;
    ~TemporaryFolder() {
        std::error_code ignored;
        fs::remove_all(path_, ignored);
    }
    [[nodiscard]] fs::path operator/(const std::string& name) const { return path_ / name; }

 private:
    fs::path path_;
};

inline std::string read_file(const fs::path& path) {
    std::ifstream file(path, std::ios::binary);
    if (!file) wrong("cannot read ", path.string());
    std::ostringstream content;
    content << file.rdbuf();
    return std::move(content).str();
}

inline void apply_patch(const fs::path& file, const JsonValue& patch, const fs::path& bundles) {
    if (const auto from = patch.find("from")) {
        fs::copy_file(bundles / from->string() / file.filename(), file, fs::copy_options::overwrite_existing);
    } else if (patch.find("remove")) {
        fs::remove(file);
    } else {
        auto content = read_file(file);
        const auto digits = patch["insert"].string();
        std::string bytes;
        for (std::size_t i = 0; i < digits.size(); i += 2) {
            int byte = 0;
            std::from_chars(digits.data() + i, digits.data() + i + 2, byte, 16);
            bytes.push_back(static_cast<char>(byte));
        }
        content.replace(static_cast<std::size_t>(patch["offset"].integer(0, INT64_MAX)),
                        static_cast<std::size_t>(patch["delete"].integer(0, INT64_MAX)), bytes);
        std::ofstream(file, std::ios::binary) << content;
    }
}

}  // namespace molkv::test
