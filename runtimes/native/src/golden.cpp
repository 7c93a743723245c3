// Golden vectors: the parser of their file. golden_errors.cpp compares logits with them.
#include "golden.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <cstring>
#include <limits>
#include <string_view>

#include "error.h"
#include "safetensors.h"

namespace molkv {

namespace {

constexpr std::int64_t most_top = 16;
constexpr std::array<const char*, 5> text_fields = {"input_ids", "top_ids", "top_logits", "projection", "greedy_ids"};

std::string shown(const std::vector<std::int64_t>& shape) {
    std::string result;
    for (const std::int64_t size : shape) result += text(result.empty() ? "" : ", ", size);
    return "[" + result + "]";
}

class GoldenParser {
 public:
    GoldenParser(std::string content, const std::string& where, std::int64_t vocab_size, std::int64_t most_tokens)
        : content_(std::move(content)), where_(where), vocab_size_(vocab_size), most_tokens_(most_tokens) {}

    Golden parse() {
        read_header();
        Golden golden;
        const std::vector<float> limits = numbers<float>("limits", "F32", {2});
        for (const float limit : limits) {
            if (!std::isfinite(limit) || limit < 0) refuse("limits: found ", limit, ", expected finite, not negative");
        }
        golden.max_abs = limits[0];
        golden.relative_l2 = limits[1];
        for (std::size_t index = 0; index < count_; index++) golden.texts.push_back(parse_text(index));
        return golden;
    }

 private:
    template <typename... Parts>
    [[noreturn]] void refuse(const Parts&... parts) const {
        fail(Kind::bundle, where_, ": ", parts...);
    }

    // Read the header, and check that it has the limits and all fields of each text, and nothing else.
    void read_header() {
        std::uint64_t length = 0;
        if (content_.size() < sizeof length) refuse("has ", content_.size(), " bytes, expected a safetensors file");
        std::memcpy(&length, content_.data(), sizeof length);
        if (length > content_.size() - sizeof length) refuse("is not a safetensors file, or is truncated");
        header_ = parse_safetensors_header(content_.substr(sizeof length, static_cast<std::size_t>(length)),
                                           content_.size(), where_, Kind::bundle);
        const auto version = header_.metadata.find("golden_version");
        if (version == header_.metadata.end() || version->second != "2") {
            refuse("golden_version: found ", version == header_.metadata.end() ? "none" : version->second.substr(0, 20),
                   ", expected 2; export the model again or update this driver");
        }
        count_ = (header_.tensors.size() - std::min<std::size_t>(1, header_.tensors.size())) / text_fields.size();
        if (count_ == 0 || header_.tensors.size() != 1 + count_ * text_fields.size()) {
            refuse("found ", header_.tensors.size(), " tensors, expected limits and five for each text");
        }
    }

    [[nodiscard]] const StoredTensor& tensor(const std::string& name) const {
        const auto found = header_.tensors.find(name);
        if (found == header_.tensors.end())
            refuse("found no tensor ", name, ", expected it in a file of ", count_, " texts");
        return found->second;
    }

    template <typename Number>
    [[nodiscard]] std::vector<Number> numbers(const std::string& name, const char* dtype,
                                              const std::vector<std::int64_t>& shape) const {
        const StoredTensor& found = tensor(name);
        if (found.dtype != dtype || found.shape != shape) {
            refuse(name, ": found ", found.dtype, " ", shown(found.shape), ", expected ", dtype, " ", shown(shape));
        }
        std::vector<Number> result(static_cast<std::size_t>(found.size / sizeof(Number)));
        if (!result.empty()) std::memcpy(result.data(), content_.data() + found.offset, result.size() * sizeof(Number));
        return result;
    }

    [[nodiscard]] std::vector<std::int32_t> ids(const std::string& name, const std::vector<std::int64_t>& shape) const {
        std::vector<std::int32_t> result = numbers<std::int32_t>(name, "I32", shape);
        for (const std::int32_t id : result) {
            if (id < 0 || id >= vocab_size_) {
                refuse(name, ": found ", id, ", expected token ids from 0 to ", vocab_size_ - 1);
            }
        }
        return result;
    }

    // Return the size of a tensor with one dimension.
    [[nodiscard]] std::int64_t length(const std::string& name) const {
        const std::vector<std::int64_t>& shape = tensor(name).shape;
        if (shape.size() != 1) refuse(name, ": found the shape ", shown(shape), ", expected one dimension");
        return shape[0];
    }

    [[nodiscard]] GoldenText parse_text(std::size_t index) const {
        const std::string prefix = text("texts.", index, ".");
        const std::int64_t tokens = length(prefix + text_fields[0]);
        const std::int64_t new_tokens = length(prefix + text_fields[4]);
        // The last greedy token is not run.
        const std::int64_t run = new_tokens - (new_tokens > 0 ? 1 : 0);
        if (tokens < 1 || tokens > most_tokens_ || run > most_tokens_ - tokens) {
            refuse(prefix.substr(0, prefix.size() - 1), ": found ", tokens, " tokens and ", new_tokens,
                   " greedy tokens, expected at least 1 token, and at most ", most_tokens_,
                   " in total without the last greedy token");
        }
        const std::int64_t top = std::min(most_top, vocab_size_);
        GoldenText found;
        found.top_count = static_cast<std::size_t>(top);
        found.input_ids = ids(prefix + text_fields[0], {tokens});
        found.top_ids = ids(prefix + text_fields[1], {tokens, top});
        found.top_logits = numbers<float>(prefix + text_fields[2], "F32", {tokens, top});
        found.projection = numbers<float>(prefix + text_fields[3], "F32", {tokens, projections});
        found.greedy_ids = ids(prefix + text_fields[4], {new_tokens});
        return found;
    }

    std::string content_;
    const std::string& where_;
    std::int64_t vocab_size_;
    std::int64_t most_tokens_;
    SafetensorsHeader header_;
    std::size_t count_ = 0;  // texts
};

}  // namespace

Golden parse_golden(std::string content, const std::string& where, std::int64_t vocab_size, std::int64_t most_tokens) {
    return GoldenParser(std::move(content), where, vocab_size, most_tokens).parse();
}

GoldenLimits Golden::limits(double tolerance) const {
    double squares = 0;
    std::size_t count = 0;
    for (const GoldenText& one : texts) {
        for (const float projection : one.projection) squares += static_cast<double>(projection) * projection;
        count += one.projection.size();
    }
    const double size = count == 0 ? 0 : std::sqrt(squares / static_cast<double>(count));
    return {max_abs + tolerance, relative_l2 + (size > 0 ? tolerance / size : 0)};
}

}  // namespace molkv
