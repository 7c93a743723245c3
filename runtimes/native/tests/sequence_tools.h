// What the tests of sequences share: bundles of the conformance suite, folders for copies, and comparisons.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <map>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "check.h"
#include "handles.h"
#include "json.h"
#include "model.h"
#include "sequences.h"

namespace molkv::test {

inline std::string read_file(const std::filesystem::path& path) {
    std::ifstream stream(path, std::ios::binary);
    return {std::istreambuf_iterator<char>(stream), {}};
}

inline void write_file(const std::filesystem::path& path, const std::string& content) {
    std::ofstream(path, std::ios::binary) << content;
}

// A temporary folder, which is removed at the end.
class TemporaryFolder {
 public:
    TemporaryFolder() {
        std::string name = (std::filesystem::temp_directory_path() / "molkv-test-XXXXXX").string();
        if (::mkdtemp(name.data()) == nullptr) fail(Kind::request, "no temporary folder");
        path_ = name;
    }
    TemporaryFolder(const TemporaryFolder&) = delete;
    TemporaryFolder& operator=(const TemporaryFolder&) = delete;
    ~TemporaryFolder() { std::filesystem::remove_all(path_); }
    [[nodiscard]] const std::filesystem::path& path() const { return path_; }

 private:
    std::filesystem::path path_;
};

// The conformance suite: its cases, and models that are opened on first use.
class Suite {
 public:
    Suite(const char* library, const char* folder)
        : base_(load_onnxruntime(library)),
          folder_(folder),
          cases_(read_file(folder_ / "cases.json"), "cases.json", Kind::request) {}

    [[nodiscard]] JsonValue cases() const { return cases_.root()["cases"]; }
    [[nodiscard]] const std::filesystem::path& folder() const { return folder_; }
    // The largest difference of a logit that the golden vectors of a bundle allow.
    [[nodiscard]] double limit(const std::string& bundle) const { return cases_.root()["limits"][bundle].number(); }
    [[nodiscard]] const Model& model(const std::string& bundle) {
        auto& model = models_[bundle];
        if (!model) model = open(folder_ / "bundles" / bundle);
        return *model;
    }
    [[nodiscard]] std::unique_ptr<Model> open(const std::filesystem::path& bundle) const {
        return std::make_unique<Model>(base_, std::make_shared<Folder>(bundle.string()), Target{}, "", false);
    }

 private:
    const OrtApiBase* base_;
    std::filesystem::path folder_;
    Json cases_;
    std::map<std::string, std::unique_ptr<Model>> models_;
};

inline std::vector<std::int32_t> ids_of(const JsonValue& list) {
    std::vector<std::int32_t> ids;
    for (const JsonValue& id : list.items()) ids.push_back(static_cast<std::int32_t>(id.integer(INT32_MIN, INT32_MAX)));
    return ids;
}

// Return `count` token ids that look random, the same ones for the same seed.
inline std::vector<std::int32_t> some_ids(const Model& model, std::size_t count, std::uint32_t seed) {
    std::vector<std::int32_t> ids;
    for (std::uint32_t state = seed; ids.size() < count;) {
        state = 1664525 * state + 1013904223;
        ids.push_back(static_cast<std::int32_t>((state >> 8U) % static_cast<std::uint32_t>(model.config().vocab_size)));
    }
    return ids;
}

inline std::vector<float> copied(std::span<const float> numbers) {
    return {numbers.begin(), numbers.end()};
}

// Return the largest difference; infinity if a number is missing or not finite.
inline double distance(std::span<const float> found, std::span<const float> expected) {
    if (found.size() != expected.size()) return INFINITY;
    double largest = 0;
    for (std::size_t i = 0; i < found.size(); i++) {
        if (!std::isfinite(found[i])) return INFINITY;
        largest = std::max(largest, std::abs(static_cast<double>(found[i]) - static_cast<double>(expected[i])));
    }
    return largest;
}

inline void close_to(std::span<const float> found, std::span<const float> expected, double limit,
                     const std::string& what) {
    const double found_distance = distance(found, expected);
    that(found_distance <= limit, text(what, ": a logit differs by ", found_distance, ", expected at most ", limit));
}

inline Kind kind_of(std::string_view name) {
    return name == "bundle" ? Kind::bundle : name == "provider" ? Kind::provider : Kind::request;
}

inline std::string hex_bytes(std::string_view digits) {
    std::string bytes;
    for (std::size_t i = 0; i + 1 < digits.size(); i += 2)
        bytes += static_cast<char>(std::stoi(std::string(digits.substr(i, 2)), nullptr, 16));
    return bytes;
}

}  // namespace molkv::test
