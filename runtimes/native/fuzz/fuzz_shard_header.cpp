// Fuzz target: headers of shards. The input is the beginning of a shard; the records after it are a hole in the file.
#include <unistd.h>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <string>

#include "shard.h"

namespace {

// Return a file without a name, which holds `content` and then zeros up to `size`.
molkv::File unnamed_file(const std::string& content, std::uint64_t size) {
    std::string path = "/tmp/molkv-fuzz-XXXXXX";
    const int descriptor = ::mkstemp(path.data());
    if (descriptor < 0 || ::unlink(path.c_str()) != 0) std::abort();
    if (::write(descriptor, content.data(), content.size()) != static_cast<ssize_t>(content.size())) std::abort();
    if (::ftruncate(descriptor, static_cast<off_t>(size)) != 0) std::abort();
    return {descriptor, 0, size, "shard"};
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
    // The table of the bundle "molkv".
    molkv::Table table;
    table.id = "cfc0532aea75e124";
    table.rows = 61;
    table.stride = 896;
    table.fields = {{"embedding", molkv::DType::float32, {64}, 0},
                    {"expert_key.1", molkv::DType::float32, {2, 8}, 256},
                    {"expert_value.1", molkv::DType::float32, {2, 64}, 320}};
    const molkv::ShardInfo shard{"shard", 0, table.rows, 4096};
    try {
        const std::string content(reinterpret_cast<const char*>(data), size);
        const auto whole = static_cast<std::uint64_t>(shard.data_offset + shard.count * table.stride);
        molkv::check_shard(unnamed_file(content, std::max<std::uint64_t>(whole, size)), shard, table);
    } catch (const molkv::Error&) {  // a refusal is right for most inputs
    }
    return 0;
}
