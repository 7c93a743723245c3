// Reads records of a bundle of runtimes/conformance: whole, damaged, and divided into two shards. The argument is the
// folder runtimes/conformance.
#include <algorithm>
#include <cstring>
#include <filesystem>
#include <memory>

#include "bundle_files.h"
#include "check.h"
#include "store.h"

namespace fs = std::filesystem;
namespace test = molkv::test;
using molkv::Kind;

namespace {

constexpr const char* shard_name = "experts-00001-of-00001.safetensors";

molkv::Bundle open_bundle(const fs::path& folder) {
    return {std::make_shared<molkv::Folder>(folder.string()), {"cpu"}, ""};
}

// The records of a bundle with one shard, from its file.
struct Expected {
    std::string content;
    std::size_t stride;
    std::size_t start;

    explicit Expected(const fs::path& folder) : content(test::read_file(folder / shard_name)) {
        const molkv::Bundle bundle = open_bundle(folder);
        stride = static_cast<std::size_t>(bundle.table().stride);
        start = static_cast<std::size_t>(bundle.table().shards.at(0).data_offset);
    }

    [[nodiscard]] std::string_view record(std::int32_t id) const {
        return std::string_view(content).substr(start + static_cast<std::size_t>(id) * stride, stride);
    }
};

std::string_view view(std::span<const std::byte> bytes) {
    return {reinterpret_cast<const char*>(bytes.data()), bytes.size()};
}

void check_gather(const molkv::Store& store, const Expected& expected, const std::vector<std::int32_t>& ids,
                  std::string_view what) {
    std::vector<std::byte> records(ids.size() * store.stride());
    store.gather(ids, records);
    for (std::size_t i = 0; i < ids.size(); i++) {
        test::that(view(records).substr(i * store.stride(), store.stride()) == expected.record(ids[i]),
                   molkv::text(what, ": token id ", ids[i]));
    }
}

void check_all_ids(const molkv::Store& store, const Expected& expected) {
    check_gather(store, expected, {}, "no ids");
    for (std::int32_t id = 0; id < 61; id++) check_gather(store, expected, {id}, "one id");
    check_gather(store, expected, {60, 0, 59, 1, 58, 2}, "both ends");
    check_gather(store, expected, {7, 7, 7}, "the same id");
    check_gather(store, expected, {9, 8, 8, 30, 7, 9, 31, 30}, "neighbours and repeats");
    std::vector<std::int32_t> all;
    for (std::int32_t id = 0; id < 61; id++) all.push_back(id);
    check_gather(store, expected, all, "all ids");
    std::reverse(all.begin(), all.end());
    check_gather(store, expected, all, "all ids, descending");
    std::uint32_t state = 7;
    for (int round = 0; round < 50; round++) {
        std::vector<std::int32_t> ids(40);
        for (std::int32_t& id : ids)
            id = static_cast<std::int32_t>((state = state * 1664525U + 1013904223U) >> 8U) % 61;
        check_gather(store, expected, ids, "random ids");
    }
}

void check_read_ahead(const molkv::Store& store, const Expected& expected) {
    const std::vector<std::int32_t> ids = {3, 50, 4};
    std::vector<std::byte> records(ids.size() * store.stride());
    molkv::ReadAhead ahead(store);
    ahead.wait();
    for (int round = 0; round < 100; round++) {
        std::fill(records.begin(), records.end(), std::byte{0});
        ahead.start(ids, records);
        ahead.wait();
        test::that(view(records).substr(store.stride(), store.stride()) == expected.record(50), "read ahead");
    }
    ahead.start(ids, records);  // the destructor waits
}

void check_damage(const fs::path& folder, const Expected& expected) {
    std::string content = expected.content;
    content[expected.start + 20 * expected.stride + 3] ^= 1;
    test::write_file(folder / shard_name, content);
    const molkv::Bundle bundle = open_bundle(folder);
    const molkv::Store store(bundle);
    std::vector<std::byte> records(3 * store.stride());
    const auto gather = [&](const std::vector<std::int32_t>& ids) { store.gather(ids, records); };
    gather({19});
    gather({19, 21, 22});
    test::refused([&] { gather({20}); }, Kind::bundle, "record 20 (token id 20) fails its checksum", "one id");
    test::refused([&] { gather({21, 20, 19}); }, Kind::bundle, "record 20 (token id 20) fails", "a run of ids");
    test::refused([&] { gather({5, 20, 40}); }, Kind::bundle, std::string(shard_name) + ": record 20", "several runs");

    const std::vector<std::int32_t> ids = {20, 1};
    const std::vector<std::int32_t> others = {1, 2};
    molkv::ReadAhead ahead(store);
    ahead.start(ids, records);
    test::refused([&] { ahead.wait(); }, Kind::bundle, "record 20", "an error of the reading thread");
    ahead.start(ids, records);
    ahead.start(others, records);
    ahead.wait();  // the error of the first read is dropped

    // A record in the place of another row, and a file that becomes shorter.
    content = expected.content;
    content.replace(expected.start + 8 * expected.stride, expected.stride, expected.record(9));
    test::write_file(folder / shard_name, content);
    test::refused([&] { gather({8}); }, Kind::bundle, "record 8 (token id 8) fails", "a record of another row");
    test::write_file(folder / shard_name, content.substr(0, content.size() - 10));
    gather({59});
    test::refused([&] { gather({60}); }, Kind::bundle, "while reading record 60 (token id 60)", "a shorter file");
    test::refused([&] { gather({60, 59}); }, Kind::bundle, "while reading record 59", "a shorter file, two ids");
    test::write_file(folder / shard_name, expected.content);
}

void replace(std::string& content, std::string_view from, std::string_view to) {
    const std::size_t place = content.find(from);
    if (place == std::string::npos) molkv::fail(Kind::request, "a test expects ", from);
    content.replace(place, from.size(), to);
}

// A shard with rows of another shard.
std::string part_of(const Expected& whole, std::int32_t first, std::int32_t count) {
    std::uint64_t length = 0;
    std::memcpy(&length, whole.content.data(), 8);
    std::string header = whole.content.substr(8, length);
    const std::size_t stride = whole.stride;
    replace(header, R"(\"first_row\":0,\"count\":61)",
            molkv::text(R"(\"first_row\":)", first, R"(,\"count\":)", count));
    replace(header, molkv::text("\"shape\":[61,", stride, "],\"data_offsets\":[0,", 61 * stride, "]"),
            molkv::text("\"shape\":[", count, ",", stride, "],\"data_offsets\":[0,",
                        static_cast<std::size_t>(count) * stride, "]"));
    header.resize(length, ' ');
    const std::size_t begin = whole.start + static_cast<std::size_t>(first) * stride;
    return whole.content.substr(0, 8) + header + whole.content.substr(begin, static_cast<std::size_t>(count) * stride);
}

// Divide the shard of a bundle after 30 rows.
void divide(const fs::path& folder, const Expected& expected) {
    const std::string first = part_of(expected, 0, 30);
    const std::string second = part_of(expected, 30, 31);
    fs::remove(folder / shard_name);
    test::write_file(folder / "a.safetensors", first);
    test::write_file(folder / "b.safetensors", second);
    std::string manifest = test::read_file(folder / "manifest.json");
    const std::size_t list = manifest.find("\"shards\": [");
    manifest.replace(
        list, manifest.find(']', list) - list,
        molkv::text(R"("shards": [{"file": "a.safetensors", "first_row": 0, "count": 30, "data_offset": )",
                    expected.start, R"(}, {"file": "b.safetensors", "first_row": 30, "count": 31, "data_offset": )",
                    expected.start, "}"));
    const std::size_t file = manifest.find(molkv::text('"', shard_name, "\": {"));
    const std::string hash(64, '0');
    manifest.replace(file, manifest.find('}', file) - file,
                     molkv::text(R"("a.safetensors": {"size": )", first.size(), R"(, "sha256": ")", hash,
                                 R"("}, "b.safetensors": {"size": )", second.size(), R"(, "sha256": ")", hash, "\""));
    test::write_file(folder / "manifest.json", test::sealed(manifest));
}

}  // namespace

int main(int count, char** arguments) {
    if (count != 2) return 2;
    const test::TemporaryFolder folder;
    fs::copy(fs::path(arguments[1]) / "bundles" / "molkv", folder.path());
    const Expected expected(folder.path());
    {
        const molkv::Bundle bundle = open_bundle(folder.path());
        const molkv::Store store(bundle);
        test::equal(store.stride(), expected.stride, "the stride");
        check_all_ids(store, expected);
        check_read_ahead(store, expected);
    }
    check_damage(folder.path(), expected);
    divide(folder.path(), expected);
    {
        const molkv::Bundle bundle = open_bundle(folder.path());
        test::equal(bundle.table().shards.size(), 2U, "the number of shards");
        check_all_ids(molkv::Store(bundle), expected);
    }
    test::write_file(folder.path() / "b.safetensors", part_of(expected, 29, 31));
    test::refused([&] { const molkv::Store store(open_bundle(folder.path())); }, Kind::bundle, "b.safetensors",
                  "a shard with other rows");
    return test::finish();
}
