// Headers of safetensors files: a valid one, and one case for each rule.
#include <cstring>

#include "bundle_files.h"
#include "check.h"
#include "safetensors.h"

namespace test = molkv::test;
using molkv::Kind;

namespace {

// Return a file with this header and a number of bytes of data.
std::string file_of(const std::string& header, std::size_t data) {
    std::string length(8, '\0');
    const std::uint64_t size = header.size();
    std::memcpy(length.data(), &size, sizeof size);
    return length + header + std::string(data, '\0');
}

molkv::SafetensorsHeader parse(const std::string& content) {
    const test::TemporaryFolder folder;
    const std::string path = (folder.path() / "x.safetensors").string();
    test::write_file(path, content);
    return molkv::read_safetensors(molkv::File::open(path, Kind::request), Kind::request);
}

void refused(const std::string& header, std::size_t data, const char* part) {
    test::refused([&] { parse(file_of(header, data)); }, Kind::request, part, header);
}

void check_good() {
    const auto found = parse(file_of(R"({"__metadata__": {"a": "b"},
        "y": {"dtype": "F16", "shape": [2, 3], "data_offsets": [4, 16]},
        "empty": {"dtype": "I64", "shape": [5, 0], "data_offsets": [4, 4]},
        "x": {"dtype": "U8", "shape": [], "data_offsets": [16, 17]},
        "z": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}}    )",
                                     17));
    test::equal(found.metadata.at("a"), std::string("b"), "metadata");
    test::equal(found.tensors.size(), std::size_t{4}, "tensors");
    const molkv::StoredTensor& y = found.tensors.at("y");
    test::equal(y.offset, found.data_offset + 4, "the place of a tensor");
    test::equal(y.size, std::uint64_t{12}, "the size of a tensor");
    test::that(y.shape == std::vector<std::int64_t>{2, 3} && y.dtype == "F16", "dtype and shape");
    test::equal(parse(file_of("{}", 0)).data_offset, std::uint64_t{10}, "no tensors");
}

void check_files() {
    test::refused([] { parse("1234567"); }, Kind::request, "7 bytes", "a file without a length");
    test::refused([] { parse(std::string(8, '\xff')); }, Kind::request, "18446744073709551615", "a huge length");
    test::refused([] { parse(file_of("{}", 0).substr(0, 9)); }, Kind::request, "at most 1", "a header cut short");
    refused("{}", 1, "expected 10");
    refused(R"({"x": {"dtype": "U8", "shape": [4], "data_offsets": [0, 4]}})", 3, "truncated");
    refused(R"({"x": {"dtype": "U8", "shape": [4], "data_offsets": [0, 4]}})", 5, "according to its header");
}

void check_tensors() {
    const auto tensor = [](const std::string& fields) { return R"({"x": {)" + fields + "}}"; };
    refused("[]", 0, "expected an object");
    refused(R"({"x": 1})", 0, "x: found an integer");
    refused(R"({"__metadata__": {"a": 1}})", 0, "__metadata__.a: found an integer");
    refused(R"({"__metadata__": []})", 0, "__metadata__: found a list");
    refused(R"({"__metadata__": {}, "__metadata__": {}})", 0, "a second time");
    refused(tensor(R"("dtype": "F3", "shape": [1], "data_offsets": [0, 4])"), 4, "x.dtype: found F3");
    refused(tensor(R"("dtype": "F32", "shape": [-1], "data_offsets": [0, 4])"), 4, "x.shape[0]: found -1");
    refused(tensor(R"("dtype": "F32", "shape": [1.0], "data_offsets": [0, 4])"), 4, "x.shape[0]: found a number");
    refused(tensor(R"("dtype": "F32", "shape": [1], "data_offsets": [0, 4], "more": 1)"), 4, "unknown field");
    refused(tensor(R"("dtype": "F32", "shape": [1])"), 4, "no field \"data_offsets\"");
    refused(tensor(R"("dtype": "F32", "shape": [1], "data_offsets": [0])"), 4, "found 1 numbers");
    refused(tensor(R"("dtype": "F32", "shape": [1], "data_offsets": [4, 0])"), 4, "found [4, 0]");
    refused(tensor(R"("dtype": "F32", "shape": [1], "data_offsets": [0, 3])"), 4, "found 3 bytes");
    refused(tensor(R"("dtype": "F32", "shape": [1], "data_offsets": [4, 8])"), 4, "found [4, 8]");
    refused(tensor(R"("dtype": "U8", "shape": [1, 1, 1, 1, 1, 1, 1, 1, 1], "data_offsets": [0, 1])"), 1,
            "9 dimensions");
    // The product of the shapes is 2^64, which is 0 in 64 bits.
    refused(tensor(R"("dtype": "U8", "shape": [65536, 65536, 65536, 65536], "data_offsets": [0, 0])"), 65536, "larger");
    refused(tensor(R"("dtype": "U8", "shape": [4294967296, 4294967296], "data_offsets": [0, 0])"), 4, "larger");
    refused(tensor(R"("dtype": "U8", "shape": [9223372036854775808], "data_offsets": [0, 0])"), 4, "x.shape[0]");
    const std::string pair = R"({"x": {"dtype": "U8", "shape": [4], "data_offsets": [0, 4]},
                                 "y": {"dtype": "U8", "shape": [4], "data_offsets": [)";
    refused(pair + "3, 7]}}", 8, "expected");  // an overlap, and a byte of no tensor
    refused(pair + "5, 9]}}", 9, "expected");  // a gap
    test::equal(parse(file_of(pair + "4, 8]}}", 8)).tensors.size(), std::size_t{2}, "two tensors");
}

}  // namespace

int main() {
    check_good();
    check_files();
    check_tensors();
    return test::finish();
}
