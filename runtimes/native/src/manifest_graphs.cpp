// The field `graphs` of a manifest: types, and the relations between a profile, its files and the model.
#include "manifest_graphs.h"

#include <algorithm>
#include <limits>
#include <string_view>

#include "family.h"

namespace molkv {

namespace {

constexpr std::int64_t largest_size = std::numeric_limits<std::int32_t>::max();

DType parse_dtype(const JsonValue& name, std::initializer_list<DType> allowed) {
    std::string names;
    for (const DType dtype : allowed) {
        if (name.string() == dtype_name(dtype)) return dtype;
        names += text(names.empty() ? "" : " or ", dtype_name(dtype));
    }
    name.refuse(name.string().substr(0, 40), names);
}

std::vector<TensorInfo> parse_tensors(const JsonValue& tensors) {
    std::vector<TensorInfo> found;
    for (const JsonValue& tensor : tensors.list()) {
        tensor.expect_fields({"name", "dtype", "shape"});
        TensorInfo parsed;
        parsed.name = tensor["name"].string();
        parsed.dtype =
            parse_dtype(tensor["dtype"], {DType::float32, DType::float16, DType::int64, DType::int32, DType::int8});
        for (const JsonValue& size : tensor["shape"].list()) {
            if (size.type() == JsonValue::Type::string) {
                parsed.shape.emplace_back(std::string(size.string()));
            } else {
                parsed.shape.emplace_back(size.integer(0, std::numeric_limits<std::int64_t>::max()));
            }
        }
        found.push_back(std::move(parsed));
    }
    return found;
}

// Whether a text has three numbers of 1 to 5 digits, such as "1.25.1".
bool is_version(std::string_view version) {
    for (int part = 0; part < 3; part++) {
        const std::size_t digits = std::min(version.find_first_not_of("0123456789"), version.size());
        if (digits < 1 || digits > 5) return false;
        version.remove_prefix(digits);
        if (part == 2) return version.empty();
        if (!version.starts_with('.')) return false;
        version.remove_prefix(1);
    }
    return false;
}

std::vector<GraphFile> parse_files(const JsonValue& files, bool is_static, std::int64_t context_length) {
    std::vector<GraphFile> found;
    for (const JsonValue& file : files.list()) {
        file.expect_fields({"file", "length", "inputs", "outputs"});
        // Profile "cpu": [0]. Static graphs: ascending from 1.
        const bool first = found.empty();
        if (!first && !is_static) file.refuse("a second file", "one file in profile cpu");
        const std::int64_t least = !is_static ? 0 : first ? 1 : found.back().length + 1;
        const std::int64_t most = !is_static ? 0 : first ? 1 : context_length;
        found.push_back({std::string(file["file"].string()), file["length"].integer(least, most),
                         parse_tensors(file["inputs"]), parse_tensors(file["outputs"])});
    }
    if (found.empty()) files.refuse("no file", "at least one");
    return found;
}

// Check that the files have the same format. In ORT format, `data` names the first of them, since no other file has
// weights.
void check_formats(const JsonValue& graph, const Graph& found) {
    for (const JsonValue& file : graph["files"].list()) {
        if (file["file"].string().ends_with(".ort") == found.is_ort_format()) continue;
        file["file"].refuse(file["file"].string().substr(0, 80), "all files in ORT format (.ort), or none");
    }
    if (found.is_ort_format() && found.data != found.files.front().file) {
        graph["data"].refuse(found.data.substr(0, 80), "the first file, since files in ORT format hold their weights");
    }
}

// Return the expert window, which a static graph may lower to 1.
std::int64_t parse_window(const JsonValue& value, std::int64_t limit, bool is_static) {
    return value.integer(is_static ? std::min<std::int64_t>(1, limit) : limit, limit);
}

std::string parse_dense_dtype(const JsonValue& name, bool is_static) {
    const std::string_view found = name.string();
    const bool both = found == "float32" || found == "float16";
    const bool only = is_static ? found == "qdq-int8" : found == "int8" || found == "int4";
    if (!both && !only) {
        name.refuse(found.substr(0, 40), is_static ? "float32, float16 or qdq-int8" : "float32, float16, int8 or int4");
    }
    return std::string(found);
}

DType parse_window_dtype(const JsonValue& name, const ModelConfig& model, bool is_static) {
    const bool has_int8 = !is_static && model.num_experts > 0 && find_family(model.model_type)->has_int8_window();
    if (has_int8) return parse_dtype(name, {DType::float32, DType::int8});
    return parse_dtype(name, {DType::float32});
}

Graph parse_graph(const JsonValue& graph, const ModelConfig& model) {
    graph.expect_fields({"files", "data", "golden", "dense_dtype", "kv_dtype", "window_dtype", "block_size",
                         "context_length", "expert_window", "min_onnxruntime"});
    const bool is_static = graph.key() != "cpu";
    Graph found;
    found.profile = graph.key();
    found.data = graph["data"].string();
    found.golden = graph["golden"].string();
    found.dense_dtype = parse_dense_dtype(graph["dense_dtype"], is_static);
    found.kv_dtype = parse_dtype(graph["kv_dtype"], {DType::float32, is_static ? DType::float16 : DType::int8});
    found.window_dtype = parse_window_dtype(graph["window_dtype"], model, is_static);
    const bool has_blocks = found.dense_dtype == "int4";
    found.block_size = graph["block_size"].integer(has_blocks ? 1 : 0, has_blocks ? largest_size : 0);
    found.context_length = graph["context_length"].integer(1, model.max_position_embeddings);
    found.expert_window = parse_window(graph["expert_window"], model.expert_window, is_static);
    found.files = parse_files(graph["files"], is_static, found.context_length);
    check_formats(graph, found);
    found.min_onnxruntime = graph["min_onnxruntime"].string();
    if (!is_version(found.min_onnxruntime)) {
        graph["min_onnxruntime"].refuse(found.min_onnxruntime.substr(0, 40), "a version such as 1.25.1");
    }
    return found;
}

}  // namespace

std::vector<Graph> parse_graphs(const JsonValue& graphs, const ModelConfig& model) {
    std::vector<Graph> found;
    for (const JsonValue& graph : graphs.fields()) {
        const std::string_view profile = graph.key();
        if (profile != "cpu" && profile != "coreml" && profile != "nnapi") {
            graphs.refuse(text("the profile ", profile.substr(0, 40)), "cpu, coreml and nnapi");
        }
        if (profile != "cpu" && !find_family(model.model_type)->has_static_graphs()) {
            graphs.refuse(text("the profile ", profile), text("cpu in a model of type ", model.model_type));
        }
        found.push_back(parse_graph(graph, model));
    }
    if (found.empty()) graphs.refuse("no profile", "at least one");
    return found;
}

}  // namespace molkv
