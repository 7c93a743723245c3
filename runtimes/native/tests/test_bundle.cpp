// Opens the bundles of runtimes/conformance, and damaged copies of them. The argument is the folder
// runtimes/conformance.
#include <fcntl.h>
#include <sys/stat.h>

#include <cstring>
#include <filesystem>
#include <map>
#include <memory>

#include "bundle.h"
#include "bundle_files.h"
#include "check.h"
#include "json.h"
#include "shard.h"

namespace fs = std::filesystem;
namespace test = molkv::test;
using molkv::Bundle;
using molkv::Kind;

namespace {

const std::vector<std::string> all_profiles = {"cpu", "coreml", "nnapi"};

Bundle open_folder(const fs::path& folder, const std::string& profile = "") {
    return {std::make_shared<molkv::Folder>(folder.string()), all_profiles, profile};
}

// Check the checksum of a record, as docs/bundle-format.md, "Record", defines it.
void check_record(const Bundle& bundle, std::int64_t row) {
    const molkv::Table& table = bundle.table();
    for (const molkv::ShardInfo& shard : table.shards) {
        if (row < shard.first_row || row >= shard.first_row + shard.count) continue;
        std::vector<std::byte> record(static_cast<std::size_t>(table.stride));
        const std::int64_t place = shard.data_offset + (row - shard.first_row) * table.stride;
        bundle.open(shard.file).read(static_cast<std::uint64_t>(place), record);
        std::uint32_t stored = 0;
        std::memcpy(&stored, record.data() + record.size() - 4, 4);
        std::uint32_t found = molkv::crc32(table.id_bytes);
        found = molkv::crc32(std::as_bytes(std::span(&row, 1)), found);
        found = molkv::crc32(std::span(record).first(record.size() - 4), found);
        if (found != stored) molkv::fail(Kind::bundle, "record ", row, ": wrong checksum");
    }
}

// Make all checks of a driver that need no ONNX Runtime, as far as a prompt of these ids reaches.
void check_bundle(const Bundle& bundle, const std::vector<std::int64_t>& ids) {
    for (const molkv::GraphFile& file : bundle.graph().files) static_cast<void>(bundle.read_graph(file));
    static_cast<void>(bundle.map(bundle.graph().data));
    for (const molkv::ShardInfo& shard : bundle.table().shards) {
        test::equal(molkv::check_shard(bundle.open(shard.file), shard, bundle.table()),
                    static_cast<std::uint64_t>(shard.data_offset), "the first record of a shard");
    }
    for (const std::int64_t id : ids) check_record(bundle, id);
}

void check_good(const fs::path& folder) {
    const Bundle bundle = open_folder(folder);
    std::vector<std::int64_t> rows;
    for (std::int64_t row = 0; row < bundle.table().rows; row++) rows.push_back(row);
    check_bundle(bundle, rows);
    test::that(bundle.verify().empty(), "verify finds no damage");
    const molkv::Golden golden = bundle.golden();
    test::that(!golden.texts.empty() && golden.max_abs > 0, "golden vectors");
    test::equal(bundle.config().max_position_embeddings, bundle.graph().context_length, "the context of the graph");
    test::equal(bundle.config().expert_window, bundle.graph().expert_window, "the window of the graph");
}

// All files of a folder inside one file, at odd offsets, as assets in an Android package.
class Pack : public molkv::FileSource {
 public:
    Pack(const fs::path& folder, std::string path) : path_(std::move(path)) {
        std::string content = "x";
        for (const auto& entry : fs::directory_iterator(folder)) {
            const std::string file = test::read_file(entry.path());
            places_[entry.path().filename().string()] = {content.size(), file.size()};
            content += file + "xx";
        }
        test::write_file(path_, content);
    }
    [[nodiscard]] molkv::File open(const std::string& name) const override {
        const auto place = places_.find(name);
        if (place == places_.end()) molkv::fail(Kind::bundle, name, ": no such asset");
        return {::open(path_.c_str(), O_RDONLY | O_CLOEXEC), place->second.first, place->second.second, name};
    }
    [[nodiscard]] const std::string& where() const override { return path_; }

 private:
    std::string path_;
    std::map<std::string, std::pair<std::uint64_t, std::uint64_t>> places_;
};

void check_pack(const fs::path& folder) {
    const test::TemporaryFolder temporary;
    const Bundle bundle(std::make_shared<Pack>(folder, (temporary.path() / "pack").string()), all_profiles, "");
    check_bundle(bundle, {0, 1, 2});
    test::that(bundle.verify().empty(), "verify of a bundle inside one file");
    const std::string data = bundle.read(bundle.graph().data);
    const molkv::MappedFile mapped = bundle.map(bundle.graph().data);
    test::that(std::memcmp(mapped.bytes().data(), data.data(), data.size()) == 0, "a map at an odd offset");
    const std::string pack = (temporary.path() / "pack").string();
    test::refused([&] { molkv::File(::open(pack.c_str(), O_RDONLY), 10, ~std::uint64_t{0} - 5, "x"); }, Kind::bundle,
                  "expected a part of a file", "a part that is not in the file");
}

std::string unhex(std::string_view digits) {
    std::string bytes;
    for (std::size_t i = 0; i + 1 < digits.size(); i += 2) {
        bytes += static_cast<char>(std::stoi(std::string(digits.substr(i, 2)), nullptr, 16));
    }
    return bytes;
}

void apply_patch(const molkv::JsonValue& patch, const fs::path& bundles, const fs::path& folder) {
    const fs::path file = folder / patch["file"].string();
    if (patch.find("remove")) {
        fs::remove(file);
    } else if (const auto from = patch.find("from")) {
        fs::copy_file(bundles / from->string() / file.filename(), file, fs::copy_options::overwrite_existing);
    } else {
        std::string content = test::read_file(file);
        const auto offset = static_cast<std::size_t>(patch["offset"].integer(0, std::int64_t{1} << 40U));
        const auto count = static_cast<std::size_t>(patch["delete"].integer(0, std::int64_t{1} << 40U));
        test::write_file(file, content.replace(offset, count, unhex(patch["insert"].string())));
    }
}

// The cases of kind "damage". The check of ONNX Runtime's version (a provider error) is not part of this test.
void check_damage(const fs::path& conformance) {
    const molkv::Json cases(test::read_file(conformance / "cases.json"), "cases.json", Kind::request);
    int count = 0;
    for (const molkv::JsonValue& one : cases.root()["cases"].items()) {
        if (one["kind"].string() != "damage" || one["error"].string() != "bundle") continue;
        const test::TemporaryFolder temporary;
        const fs::path folder = temporary.path() / "bundle";
        fs::copy(conformance / "bundles" / one["bundle"].string(), folder, fs::copy_options::recursive);
        for (const molkv::JsonValue& patch : one["patches"].items()) {
            apply_patch(patch, conformance / "bundles", folder);
        }
        std::vector<std::int64_t> ids;
        for (const molkv::JsonValue& id : one["prompts"].items()[0].items()) ids.push_back(id.integer(0, 60));
        test::refused([&] { check_bundle(open_folder(folder), ids); }, Kind::bundle, "", one["name"].string());
        count++;
    }
    test::that(count >= 60, "the number of cases of damage");
}

// Headers of shards that differ from the manifest in one value.
void check_shard_headers(const fs::path& folder) {
    const Bundle bundle = open_folder(folder);
    const molkv::File file = bundle.open(bundle.table().shards[0].file);
    const auto refused = [&](const auto& change, const char* part) {
        molkv::Table table = bundle.table();
        change(table);
        test::refused([&] { molkv::check_shard(file, table.shards[0], table); }, Kind::bundle, part, part);
    };
    refused([](molkv::Table& table) { table.id = "0123456789abcdef"; }, "table: found");
    refused([](molkv::Table& table) { table.shards[0].first_row++; }, "first_row: found 0");
    refused([](molkv::Table& table) { table.shards[0].count++; }, "records: found U8");
    refused([](molkv::Table& table) { table.shards[0].data_offset++; }, "the first one at byte 4096");
    refused([](molkv::Table& table) { table.stride++; }, "records: found U8");
    refused([](molkv::Table& table) { table.fields[0].offset++; }, "fields: found");
    const molkv::File other = bundle.open("golden.safetensors");
    test::refused([&] { molkv::check_shard(other, bundle.table().shards[0], bundle.table()); }, Kind::bundle,
                  "expected one with the name records", "a file that is no shard");
}

// Special files in the place of a file of the bundle.
void check_special_files(const fs::path& good) {
    const test::TemporaryFolder temporary;
    const fs::path folder = temporary.path() / "bundle";
    fs::copy(good, folder, fs::copy_options::recursive);
    const fs::path file = folder / "golden.safetensors";
    fs::rename(file, temporary.path() / "target");
    const auto refused = [&](const char* part, const char* what) {
        test::refused([&] { open_folder(folder); }, Kind::bundle, part, what);
    };
    refused("golden.safetensors: cannot be opened", "a missing file");
    fs::create_symlink(temporary.path() / "target", file);
    check_good(folder);  // a link to a regular file, as in the cache of Hugging Face
    fs::remove(file);
    fs::create_symlink("nowhere", file);
    refused("cannot be opened", "a broken link");
    fs::remove(file);
    test::equal(::mkfifo(file.c_str(), 0600), 0, "a pipe");
    refused("not a regular file", "a pipe");
    fs::remove(file);
    fs::create_directory(file);
    refused("not a regular file", "a folder");
    fs::remove(file);
    fs::create_symlink("/dev/zero", file);
    refused("not a regular file", "a device");
    test::refused([&] { open_folder(temporary.path() / "none"); }, Kind::bundle, "manifest.json: cannot be opened",
                  "no bundle");
}

void check_profiles(const fs::path& bundles) {
    const std::string folder = (bundles / "coreml").string();
    const auto source = std::make_shared<molkv::Folder>(folder);
    test::equal(Bundle(source, {"nnapi", "coreml"}, "").graph().profile, std::string("coreml"), "the best profile");
    test::refused([&] { Bundle(source, {"cpu"}, ""); }, Kind::bundle, "coreml, expected cpu",
                  "no graph for a provider");
    test::refused([&] { Bundle(source, {"coreml"}, "nnapi"); }, Kind::bundle, "coreml, expected nnapi",
                  "a profile that the user asks for");
    const Bundle bundle = open_folder(bundles / "molkv");
    test::refused([&] { static_cast<void>(bundle.read("tokenizer.json")); }, Kind::bundle, "not part of the bundle",
                  "a file that the manifest does not list");
}

// A file that changes after the bundle was opened.
void check_later_damage(const fs::path& good) {
    const test::TemporaryFolder temporary;
    const fs::path folder = temporary.path() / "bundle";
    fs::copy(good, folder, fs::copy_options::recursive);
    const Bundle bundle = open_folder(folder);
    std::string content = test::read_file(folder / "golden.safetensors");
    content.back() = static_cast<char>(content.back() ^ 1);
    test::write_file(folder / "golden.safetensors", content);
    test::refused([&] { static_cast<void>(bundle.golden()); }, Kind::bundle, "has sha256", "a changed file");
    test::equal(bundle.verify().size(), std::size_t{1}, "files that verify finds");
    fs::resize_file(folder / "golden.safetensors", 100);
    test::refused([&] { static_cast<void>(bundle.golden()); }, Kind::bundle, "part of a file", "a shorter file");
}

// A file with holes takes no space on a disk, but its content would fill the memory.
void check_huge_file(const fs::path& good) {
    const test::TemporaryFolder temporary;
    const fs::path folder = temporary.path() / "bundle";
    fs::copy(good, folder, fs::copy_options::recursive);
    const fs::path manifest = folder / "manifest.json";
    std::string content = test::read_file(manifest);
    const std::size_t entry = content.find("\"golden.safetensors\": {");
    const std::size_t start = content.find("\"size\": ", entry) + 8;
    content.replace(start, content.find(',', start) - start, "1099511627776");
    test::write_file(manifest, test::sealed(content));
    fs::resize_file(folder / "golden.safetensors", std::uint64_t{1} << 40U);
    const Bundle bundle = open_folder(folder);
    test::refused([&] { static_cast<void>(bundle.golden()); }, Kind::bundle, "1099511627776 bytes, expected at most",
                  "a file of 1 TiB");
}

}  // namespace

int main(int count, char** arguments) {
    if (count != 2) return 2;
    const fs::path conformance = arguments[1];
    const fs::path bundles = conformance / "bundles";
    int opened = 0;
    for (const auto& entry : fs::directory_iterator(bundles)) {
        check_good(entry.path());
        opened++;
    }
    test::that(opened >= 16, "the number of bundles");
    check_pack(bundles / "bytes");
    check_damage(conformance);
    check_shard_headers(bundles / "molkv");
    check_special_files(bundles / "molkv");
    check_profiles(bundles);
    check_later_damage(bundles / "molkv");
    check_huge_file(bundles / "molkv");
    return test::finish();
}
