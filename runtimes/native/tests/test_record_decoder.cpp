// Compares decoded records of runtimes/conformance with the formulas of docs/bundle-format.md, "Record" and "Numbers".
// The argument is the folder runtimes/conformance.
#include <array>
#include <cmath>
#include <cstring>
#include <filesystem>
#include <memory>

#include "bundle_files.h"
#include "check.h"
#include "record_decoder.h"

namespace test = molkv::test;

namespace {

constexpr std::array<double, 16> levels = {
    -1,
    -0.6961928009986877,
    -0.5250730514526367,
    -0.39491748809814453,
    -0.28444138169288635,
    -0.18477343022823334,
    -0.09105003625154495,
    0,
    0.07958029955625534,
    0.16093020141124725,
    0.24611230194568634,
    0.33791524171829224,
    0.44070982933044434,
    0.5626170039176941,
    0.7229568362236023,
    1,
};

// Reads a record from its start, part by part, as the document describes them.
class Parts {
 public:
    Parts(std::string_view record, std::string dtype) : record_(record), dtype_(std::move(dtype)) {}

    // Numbers of a part without codes: float32 in a float32 store, else float16.
    std::vector<float> plain(std::size_t count) {
        align();
        return dtype_ == "float32" ? floats(count) : halves(count);
    }

    // N values of d numbers: their scales, then the codes; without codes, the numbers.
    std::vector<float> values(std::size_t experts, std::size_t size) {
        if (dtype_ == "float32" || dtype_ == "float16") return plain(experts * size);
        const std::size_t group = dtype_ == "int8" ? size : dtype_ == "int4" ? 32 : 64;
        align();
        scales_ = dtype_ == "int8" ? floats(experts) : halves(experts * size / group);
        align();
        codes_.clear();
        std::vector<float> found;
        for (std::size_t i = 0; i < experts * size; i++) {
            codes_.push_back(code(i));
            const double number = dtype_ == "nf4"    ? static_cast<double>(static_cast<float>(levels[codes_[i] & 15U]))
                                  : dtype_ == "int4" ? static_cast<double>(codes_[i]) - 8
                                                     : static_cast<std::int8_t>(codes_[i]);
            // The double holds the exact product, so it is rounded once.
            found.push_back(static_cast<float>(number * static_cast<double>(scales_[i / group])));
        }
        place_ += dtype_ == "int8" ? experts * size : experts * size / 2;
        return found;
    }

    [[nodiscard]] const std::vector<float>& scales() const { return scales_; }
    [[nodiscard]] const std::vector<std::uint8_t>& codes() const { return codes_; }

 private:
    void align() { place_ = (place_ + 3) / 4 * 4; }

    [[nodiscard]] unsigned byte(std::size_t place) const { return static_cast<unsigned char>(record_[place]); }

    [[nodiscard]] std::uint8_t code(std::size_t i) const {
        if (dtype_ == "int8") return static_cast<std::uint8_t>(byte(place_ + i));
        const unsigned both = byte(place_ + i / 2);
        return static_cast<std::uint8_t>(i % 2 == 0 ? both % 16 : both / 16);
    }

    std::vector<float> floats(std::size_t count) {
        std::vector<float> found(count);
        std::memcpy(found.data(), record_.data() + place_, 4 * count);
        place_ += 4 * count;
        return found;
    }

    std::vector<float> halves(std::size_t count) {
        std::vector<float> found;
        for (std::size_t i = 0; i < count; i++, place_ += 2) {
            const unsigned half = byte(place_) + 256 * byte(place_ + 1);
            const int exponent = static_cast<int>(half / 1024 % 32);
            const double mantissa = half % 1024;
            const double size = exponent == 0 ? std::ldexp(mantissa, -24) : std::ldexp(1024 + mantissa, exponent - 25);
            found.push_back(static_cast<float>(half >= 0x8000 ? -size : size));
        }
        return found;
    }

    std::string_view record_;
    std::string dtype_;
    std::size_t place_ = 0;
    std::vector<float> scales_;
    std::vector<std::uint8_t> codes_;
};

void check_codes(const molkv::RecordDecoder& decoder, std::span<const std::byte> record, std::size_t layer,
                 std::size_t vector, const Parts& parts) {
    const auto codes = decoder.codes(record, layer, vector);
    test::that(std::equal(codes.begin(), codes.end(), parts.codes().begin(), parts.codes().end(),
                          [](std::int8_t a, std::uint8_t b) { return a == static_cast<std::int8_t>(b); }),
               "the codes");
    std::vector<float> scales(parts.scales().size());
    decoder.scales(record, layer, vector, scales);
    test::that(scales == parts.scales(), "the scales");
}

void check_record(const molkv::Bundle& bundle, const molkv::RecordDecoder& decoder, std::span<const std::byte> record) {
    const molkv::ModelConfig& config = bundle.config();
    const std::string dtype = molkv::dtype_name(bundle.table().dtype);
    const bool is_gemma = config.model_type == "gemma4_text";  // it has one value in each layer, of another size
    const std::size_t experts = is_gemma ? 1 : static_cast<std::size_t>(config.num_experts);
    const auto hidden_size = static_cast<std::size_t>(config.hidden_size);
    const auto size = is_gemma ? static_cast<std::size_t>(config.per_layer_size) : hidden_size;
    Parts parts({reinterpret_cast<const char*>(record.data()), record.size()}, dtype);
    std::vector<float> found(hidden_size);
    decoder.embedding(record, found);
    test::that(found == parts.plain(hidden_size), bundle.where() + ": the embedding");
    for (std::size_t layer = 0; layer < config.expert_layers.size(); layer++) {
        std::size_t vector = 0;
        if (config.model_type == "molkv") {
            found.resize(experts * static_cast<std::size_t>(config.expert_key_size));
            decoder.vector(record, layer, vector, found);
            test::that(found == parts.plain(found.size()), bundle.where() + ": the keys");
            test::that(!decoder.has_codes(vector), "keys have no codes");
            vector++;
        }
        found.resize(experts * size);
        decoder.vector(record, layer, vector, found);
        test::that(found == parts.values(experts, size), bundle.where() + ": the values");
        test::equal(decoder.has_codes(vector), dtype == "int8", "whether values have codes");
        if (dtype == "int8" && layer == 0) check_codes(decoder, record, layer, vector, parts);
    }
}

}  // namespace

int main(int count, char** arguments) {
    if (count != 2) return 2;
    std::map<std::string, int> dtypes;
    for (const auto& entry : std::filesystem::directory_iterator(std::string(arguments[1]) + "/bundles")) {
        const molkv::Bundle bundle(std::make_shared<molkv::Folder>(entry.path().string()), {"cpu", "coreml", "nnapi"},
                                   "");
        const molkv::RecordDecoder decoder(bundle);
        const molkv::ShardInfo& shard = bundle.table().shards.front();
        const std::string content = test::read_file(entry.path() / shard.file);
        const auto stride = static_cast<std::size_t>(bundle.table().stride);
        for (std::int64_t row = 0; row < shard.count; row++) {
            const auto place = static_cast<std::size_t>(shard.data_offset) + static_cast<std::size_t>(row) * stride;
            check_record(bundle, decoder, std::as_bytes(std::span(content)).subspan(place, stride));
        }
        dtypes[molkv::dtype_name(bundle.table().dtype)]++;
    }
    test::equal(dtypes.size(), 5U, "the number of dtypes");
    return test::finish();
}
