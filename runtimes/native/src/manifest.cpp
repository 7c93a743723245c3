// The manifest: its version, its hash, its tables, files and defaults, and the relations between them.
#include "manifest.h"

#include <algorithm>
#include <array>
#include <charconv>
#include <limits>
#include <span>
#include <string_view>

#include "digest.h"
#include "json.h"
#include "manifest_graphs.h"
#include "model_config.h"
#include "record.h"

namespace molkv {

namespace {

constexpr std::int64_t most = std::numeric_limits<std::int64_t>::max();
constexpr std::int64_t schema_version = 4;

bool is_hexadecimal(std::string_view digits, std::size_t count) {
    return digits.size() == count && digits.find_first_not_of("0123456789abcdef") == std::string_view::npos;
}

std::string parse_digits(const JsonValue& value, std::size_t count) {
    if (!is_hexadecimal(value.string(), count)) {
        value.refuse(value.string().substr(0, 80), text(count, " lower-case hexadecimal digits"));
    }
    return std::string(value.string());
}

void check_version(const JsonValue& root) {
    const JsonValue version = root["schema_version"];
    const std::int64_t found = version.integer(std::numeric_limits<std::int64_t>::min(), most);
    if (found == schema_version) return;
    version.refuse(text(found), text(schema_version, found > schema_version
                                                         ? ". A newer exporter made the bundle: update this driver"
                                                         : ". An older exporter made the bundle: export it again"));
}

// Compare the hash of the manifest, which covers the file with zeros in the place of the hash.
void check_hash(const std::string& content, const JsonValue& root) {
    const JsonValue field = root["sha256"];
    const std::string expected = parse_digits(field, 64);
    const std::size_t place = content.find(expected);
    if (place == std::string::npos) field.refuse("digits with escape sequences", "the digits themselves");
    Sha256 digest;
    digest.update(std::string_view(content).substr(0, place));
    digest.update(std::string(64, '0'));
    digest.update(std::string_view(content).substr(place + 64));
    if (const std::string found = digest.hex(); found != expected) {
        field.refuse(text(expected.substr(0, 12), "..., but the file has ", found.substr(0, 12), "..."),
                     "the hash of the file; it was changed after the export, so copy or export the bundle again");
    }
}

std::map<std::string, FileInfo> parse_files(const JsonValue& files) {
    std::map<std::string, FileInfo> found;
    for (const JsonValue& file : files.fields()) {
        const std::string_view name = file.key();
        constexpr std::string_view separators("/\\\0", 3);
        if (name.empty() || name == "." || name == ".." || name == "manifest.json" ||
            name.find_first_of(separators) != std::string_view::npos) {
            files.refuse(text("the name \"", name.substr(0, 80), "\""), "plain names of files inside the bundle");
        }
        file.expect_fields({"size", "sha256"});
        found[std::string(name)] = {static_cast<std::uint64_t>(file["size"].integer(0, most)),
                                    parse_digits(file["sha256"], 64)};
    }
    return found;
}

const FileInfo& named_file(const JsonValue& name, const Manifest& manifest) {
    const auto found = manifest.files.find(std::string(name.string()));
    if (found == manifest.files.end()) name.refuse(name.string().substr(0, 80), "a file that is listed under files");
    return found->second;
}

// Check that the shards hold each row once, in order, and that each file ends with its last record.
std::vector<ShardInfo> parse_shards(const JsonValue& shards, const Table& table, const Manifest& manifest) {
    std::vector<ShardInfo> found;
    std::int64_t next = 0;
    for (const JsonValue& shard : shards.list()) {
        shard.expect_fields({"file", "first_row", "count", "data_offset"});
        ShardInfo parsed;
        parsed.file = shard["file"].string();
        parsed.first_row = shard["first_row"].integer(next, next);
        if (next == table.rows) shard.refuse("a further shard", text("no more than ", table.rows, " rows"));
        parsed.count = shard["count"].integer(1, table.rows - next);
        const auto size = static_cast<std::int64_t>(named_file(shard["file"], manifest).size);
        parsed.data_offset = shard["data_offset"].integer(8, most);
        const std::int64_t data = size - parsed.data_offset;  // both are at least 0
        if (data < 0 || data % table.stride != 0 || data / table.stride != parsed.count) {
            shard.refuse(text("a file of ", size, " bytes"),
                         text("data_offset and then ", parsed.count, " records of ", table.stride, " bytes"));
        }
        next += parsed.count;
        found.push_back(std::move(parsed));
    }
    if (next != table.rows) shards.refuse(text(next, " rows"), text(table.rows));
    return found;
}

std::array<std::byte, 8> parse_id_bytes(const std::string& id) {
    std::array<std::byte, 8> bytes{};
    for (std::size_t i = 0; i < bytes.size(); i++) {
        unsigned value = 0;
        std::from_chars(id.data() + 2 * i, id.data() + 2 * i + 2, value, 16);
        bytes[i] = static_cast<std::byte>(value);
    }
    return bytes;
}

Table parse_experts(const JsonValue& tables, const Manifest& manifest) {
    tables.expect_fields({"experts"});
    const JsonValue table = tables["experts"];
    table.expect_fields({"index", "rows", "id", "dtype", "stride", "fields", "shards"});
    if (table["index"].string() != "token_id") {
        table["index"].refuse(table["index"].string().substr(0, 40), "token_id");
    }
    Table found;
    found.rows = table["rows"].integer(manifest.model.vocab_size, manifest.model.vocab_size);
    found.id = parse_digits(table["id"], 16);
    found.id_bytes = parse_id_bytes(found.id);
    found.dtype = parse_record_dtype(table["dtype"]);
    found.stride = table["stride"].integer(1, most / 16);  // so that eight times the stride does not overflow
    found.fields = parse_record_fields(table["fields"]);
    found.shards = parse_shards(table["shards"], found, manifest);
    return found;
}

SamplingParameters parse_sampling(const JsonValue& sampling) {
    sampling.expect_fields({"temperature", "top_k", "top_p", "min_p", "repetition_penalty"});
    SamplingParameters found;
    found.temperature = sampling["temperature"].number();
    found.top_k = sampling["top_k"].integer(0, std::numeric_limits<std::int32_t>::max());
    found.top_p = sampling["top_p"].number();
    found.min_p = sampling["min_p"].number();
    found.repetition_penalty = sampling["repetition_penalty"].number();
    return found;
}

Generation parse_generation(const JsonValue& generation, const Manifest& manifest) {
    generation.expect_fields({"eos_token_ids", "sampling", "chat_template"});
    Generation found;
    for (const JsonValue& id : generation["eos_token_ids"].list()) {
        found.eos_token_ids.push_back(static_cast<std::int32_t>(id.integer(0, manifest.model.vocab_size - 1)));
    }
    found.sampling = parse_sampling(generation["sampling"]);
    const JsonValue chat_template = generation["chat_template"];
    const std::string_view name = chat_template.string();
    if (name == "chat_template.jinja" || name == "tokenizer_config.json") {
        static_cast<void>(named_file(chat_template, manifest));
    } else if (!name.empty()) {
        chat_template.refuse(name.substr(0, 80), "chat_template.jinja, tokenizer_config.json or nothing");
    }
    return found;
}

// Check that the defaults of sampling are in the ranges of docs/bundle-format.md, "Sampling".
void check_defaults(const Manifest& manifest, const std::string& where) {
    try {
        check_sampling(manifest.generation.sampling, manifest.model.vocab_size);
    } catch (const Error& error) {
        fail(Kind::bundle, where, ": generation.sampling.", error.what());
    }
}

void check_provenance(const JsonValue& provenance) {
    provenance.expect_fields({"command", "tools", "source"});
    static_cast<void>(provenance["command"].string());
    for (const auto* name : {"tools", "source"}) {
        for (const JsonValue& value : provenance[name].fields()) static_cast<void>(value.string());
    }
}

// Check that `files` lists every file that a graph names.
void check_graph_names(const JsonValue& graphs, const Manifest& manifest) {
    for (const JsonValue& graph : graphs.fields()) {
        static_cast<void>(named_file(graph["data"], manifest));
        static_cast<void>(named_file(graph["golden"], manifest));
        for (const JsonValue& file : graph["files"].list()) static_cast<void>(named_file(file["file"], manifest));
    }
}

}  // namespace

const char* dtype_name(DType dtype) {
    constexpr std::array names = {"float32", "float16", "int8", "uint8", "int32", "int64", "int4", "nf4"};
    return names[static_cast<std::size_t>(dtype)];
}

std::size_t dtype_bytes(DType dtype, std::size_t count) {
    constexpr std::array<std::size_t, 8> half_bytes = {8, 4, 2, 2, 8, 16, 1, 1};
    const std::size_t size = half_bytes[static_cast<std::size_t>(dtype)];
    return size == 1 ? count / 2 + count % 2 : count * (size / 2);
}

Manifest parse_manifest(const std::string& content, const std::string& where) {
    const Json json(content, where, Kind::bundle);
    const JsonValue root = json.root();
    check_version(root);
    check_hash(content, root);
    root.expect_fields({"schema_version", "model", "graphs", "tables", "generation", "files", "provenance", "sha256"});
    Manifest manifest;
    manifest.sha256 = root["sha256"].string();
    manifest.files = parse_files(root["files"]);
    manifest.model = parse_model(root["model"]);
    manifest.graphs = parse_graphs(root["graphs"], manifest.model);
    check_graph_names(root["graphs"], manifest);
    manifest.experts = parse_experts(root["tables"], manifest);
    manifest.generation = parse_generation(root["generation"], manifest);
    check_defaults(manifest, where);
    check_provenance(root["provenance"]);
    return manifest;
}

}  // namespace molkv
