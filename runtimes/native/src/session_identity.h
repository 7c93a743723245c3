// What the readers and writers of saved sessions share: names, and what a session belongs to.
#pragma once

#include <string>
#include <string_view>

#include "bundle.h"
#include "digest.h"
#include "kv_cache.h"

namespace molkv {

inline constexpr const char* session_version = "1";
inline constexpr const char* session_ids = "input_ids";
inline constexpr std::string_view session_no_digest =
    "0000000000000000000000000000000000000000000000000000000000000000";

// Return the name of a tensor of the KV cache. `name`: its name in graphs, such as "3.key".
inline std::string session_tensor(const std::string& name) {
    return "past_key_values." + name;
}

// Return the name of a dtype in safetensors files.
inline const char* session_dtype(DType dtype) {
    if (dtype == DType::int8) return "I8";
    return dtype == DType::float16 ? "F16" : "F32";
}

// Return the SHA-256 of the hashes of the graphs and of their data.
inline std::string session_graph(const Bundle& bundle) {
    Sha256 hash;
    for (const GraphFile& file : bundle.graph().files) hash.update(bundle.manifest().files.at(file.file).sha256);
    hash.update(bundle.manifest().files.at(bundle.graph().data).sha256);
    return hash.hex();
}

}  // namespace molkv
