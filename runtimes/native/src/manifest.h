// The manifest of a bundle (docs/bundle-format.md, "manifest.json"), as C++ structs.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <map>
#include <string>
#include <utility>
#include <vector>

#include "sampling.h"

namespace molkv {

enum class DType : std::uint8_t { float32, float16, int8, uint8, int32, int64, int4, nf4 };

// Return the name in a manifest, such as "float32".
const char* dtype_name(DType dtype);
// Return the bytes of `count` numbers. Two 4-bit codes share a byte.
std::size_t dtype_bytes(DType dtype, std::size_t count);

// A dimension of a tensor: a number, or a name if its size is free.
struct Dimension {
    std::int64_t size = -1;  // -1: free
    std::string name;
    // NOLINTBEGIN(google-explicit-constructor): shapes are lists such as {"batch", 64}.
    Dimension(std::int64_t fixed) : size(fixed) {}
    Dimension(const char* free) : name(free) {}
    Dimension(std::string free) : name(std::move(free)) {}
    // NOLINTEND(google-explicit-constructor)
    bool operator==(const Dimension&) const = default;
};

// An input or output of a graph.
struct TensorInfo {
    std::string name;
    DType dtype = DType::float32;
    std::vector<Dimension> shape;
    bool operator==(const TensorInfo&) const = default;
};

struct GraphFile {
    std::string file;
    std::int64_t length = 0;  // positions of a call; 0: any number
    std::vector<TensorInfo> inputs;
    std::vector<TensorInfo> outputs;
};

// The graphs of one profile.
struct Graph {
    // Whether the files are in ORT format, ONNX Runtime's own format. Each of them holds its weights.
    [[nodiscard]] bool is_ort_format() const { return files.front().file.ends_with(".ort"); }

    std::string profile;
    std::vector<GraphFile> files;
    std::string data;
    std::string golden;
    std::string dense_dtype;
    DType kv_dtype = DType::float32;
    DType window_dtype = DType::float32;
    std::int64_t block_size = 0;
    std::int64_t context_length = 0;
    std::int64_t expert_window = 0;
    std::string min_onnxruntime;
};

// The shape of the KV cache of one layer.
struct CacheShape {
    std::int64_t layer = 0;
    std::int64_t heads = 0;     // of keys and values
    std::int64_t head_dim = 0;  // numbers of a head
    bool operator==(const CacheShape&) const = default;
};

// A layer without a KV cache of its own. It uses the cache of an earlier layer, and writes it again.
struct SharedCache {
    std::int64_t layer = 0;
    std::size_t source = 0;  // the index of the cache in ModelConfig::caches
    bool operator==(const SharedCache&) const = default;
};

// The configuration of a model: what a driver uses. Fields have Hugging Face's names if there is one.
struct ModelConfig {
    std::string model_type;
    std::int64_t vocab_size = 0;
    std::int64_t hidden_size = 0;
    std::int64_t num_hidden_layers = 0;
    std::int64_t num_attention_heads = 0;
    std::int64_t max_position_embeddings = 0;
    std::vector<std::int64_t> expert_layers;  // the layers that have vectors in the records, ascending
    std::int64_t expert_window = 0;
    std::vector<CacheShape> caches;          // ascending by layer; all have the same shape if there are static graphs
    std::vector<SharedCache> shared_caches;  // ascending by layer

    // Only the files of the families that have these fields use them, and static graphs rope_theta.
    double rope_theta = 0;
    std::int64_t num_experts = 0;
    std::int64_t expert_key_size = 0;
    bool expert_rope = false;
    std::int64_t per_layer_size = 0;  // hidden_size_per_layer_input
};

// A part of a record.
struct RecordField {
    std::string name;
    DType dtype = DType::float32;
    std::vector<std::int64_t> shape;
    std::int64_t offset = 0;  // bytes from the start of the record
    bool operator==(const RecordField&) const = default;
};

struct ShardInfo {
    std::string file;
    std::int64_t first_row = 0;
    std::int64_t count = 0;
    std::int64_t data_offset = 0;
};

struct Table {
    std::int64_t rows = 0;
    std::string id;                       // 16 hexadecimal digits
    std::array<std::byte, 8> id_bytes{};  // the same as bytes, which checksums cover
    DType dtype = DType::float32;
    std::int64_t stride = 0;
    std::vector<RecordField> fields;
    std::vector<ShardInfo> shards;
};

struct Generation {
    std::vector<std::int32_t> eos_token_ids;
    SamplingParameters sampling;  // the defaults of the bundle
};

struct FileInfo {
    std::uint64_t size = 0;
    std::string sha256;
};

struct Manifest {
    ModelConfig model;
    std::vector<Graph> graphs;  // in the order of the file: the first one is the default
    Table experts;
    Generation generation;
    std::map<std::string, FileInfo> files;
    std::string sha256;
};

// Parse and check a manifest (checks 1 to 6 of "What a reader checks", without the profile that a user asks for).
// `where` is the path of the file. Throws a bundle error.
Manifest parse_manifest(const std::string& content, const std::string& where);

}  // namespace molkv
