// Gemma 4: its fields in a manifest, and what follows from them: caches, records, inputs and outputs. The expected
// values are written by hand from docs/bundle-format.md.
#include <string>
#include <vector>

#include "check.h"
#include "family.h"
#include "interface.h"
#include "manifest_graphs.h"
#include "model_config.h"
#include "record.h"

namespace test = molkv::test;
using molkv::DType;
using molkv::Kind;
using molkv::ModelConfig;
using molkv::TensorInfo;

namespace {

// Five layers: a sliding one, a full one, a sliding one; then two that share the caches of layers 2 and 1.
const std::string model = R"({"model_type": "gemma4_text", "vocab_size": 61, "hidden_size": 8,
    "intermediate_size": 5, "num_hidden_layers": 5, "num_attention_heads": 4, "num_key_value_heads": 2,
    "head_dim": 6, "global_head_dim": 10,
    "layer_types": ["sliding_attention", "full_attention", "sliding_attention", "sliding_attention", "full_attention"],
    "num_kv_shared_layers": 2, "use_double_wide_mlp": true, "sliding_window": 3, "hidden_size_per_layer_input": 64,
    "rms_norm_eps": 1e-06, "sliding_rope_theta": 10000.0, "full_rope_theta": 1000000.0, "partial_rotary_factor": 0.25,
    "final_logit_softcapping": 30.0, "max_position_embeddings": 160, "tie_word_embeddings": true})";

std::string edited(const std::string& content, const std::string& before, const std::string& after) {
    const std::size_t place = content.find(before);
    if (place == std::string::npos) molkv::fail(Kind::request, "the text has no ", before);
    return std::string(content).replace(place, before.size(), after);
}

ModelConfig parse(const std::string& content) {
    const molkv::Json json(content, "m", Kind::bundle);
    return molkv::parse_model(json.root());
}

void refused(const std::string& before, const std::string& after, const char* part) {
    test::refused([&] { parse(edited(model, before, after)); }, Kind::bundle, part, after);
}

void check_ranges() {
    for (const std::string name : {"vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers",
                                   "num_attention_heads", "num_key_value_heads", "head_dim", "global_head_dim",
                                   "sliding_window", "hidden_size_per_layer_input", "max_position_embeddings",
                                   "rms_norm_eps", "sliding_rope_theta", "full_rope_theta", "partial_rotary_factor"}) {
        const std::string field = "\"" + name + "\": ";
        const std::size_t place = model.find(field);
        const std::string value = model.substr(place, model.find(',', place) - place);
        refused(value, field + "0", (name + ": found 0").c_str());
    }
}

void check_types() {
    refused("\"head_dim\": 6", "\"head_dim\": 7", "head_dim: found 7, expected an even number");
    refused("\"global_head_dim\": 10", "\"global_head_dim\": 9", "global_head_dim: found 9, expected an even number");
    refused("\"sliding_window\": 3", "\"sliding_window\": 3.0", "sliding_window: found a number");
    refused("\"sliding_window\": 3", "\"sliding_window\": 2147483648", "sliding_window: found 2147483648");
    refused("\"num_hidden_layers\": 5", "\"num_hidden_layers\": 65537", "num_hidden_layers: found 65537");
    refused("\"max_position_embeddings\": 160", "\"max_position_embeddings\": 16777217", "found 16777217");
    refused("\"partial_rotary_factor\": 0.25", "\"partial_rotary_factor\": 1.01", "expected a number above 0 and at");
    refused("\"partial_rotary_factor\": 0.25", "\"partial_rotary_factor\": \"1\"",
            "partial_rotary_factor: found a text");
    refused("\"final_logit_softcapping\": 30.0", "\"final_logit_softcapping\": -1", "expected a number of at least 0");
    refused("\"final_logit_softcapping\": 30.0", "\"final_logit_softcapping\": null", "final_logit_softcapping: found");
    refused("\"use_double_wide_mlp\": true", "\"use_double_wide_mlp\": 1", "use_double_wide_mlp: found an integer");
    refused("\"tie_word_embeddings\": true", "\"tie_word_embeddings\": 1", "tie_word_embeddings: found an integer");
    parse(edited(model, "\"final_logit_softcapping\": 30.0", "\"final_logit_softcapping\": 0"));
    parse(edited(model, "\"partial_rotary_factor\": 0.25", "\"partial_rotary_factor\": 1"));
}

void check_fields() {
    refused("\"sliding_window\": 3", "\"sliding_windows\": 3", "sliding_windows");
    refused("\"sliding_window\": 3, ", "", "no field \"sliding_window\"");
    refused("\"sliding_window\": 3", "\"sliding_window\": 3, \"num_experts\": 2", "num_experts");
    refused("\"model_type\": \"gemma4_text\"", "\"model_type\": \"mole\"", "the unknown field \"global_head_dim\"");
    refused("\"model_type\": \"gemma4_text\"", "\"model_type\": \"gemma4\"",
            "found gemma4, expected mole, molkv or gemma4_text");
}

void check_relations() {
    refused("\"num_key_value_heads\": 2", "\"num_key_value_heads\": 3", "a multiple of num_key_value_heads, 3");
    refused("[\"sliding_attention\", ", "[", "layer_types: found 4 layers, expected num_hidden_layers, 5");
    refused("[\"sliding_attention\", ", "[\"sliding_attention\", \"full_attention\", ", "found 6 layers");
    refused("[\"sliding_attention\", ", "[\"chunked_attention\", ", "layer_types[0]: found chunked_attention");
    refused("\"num_kv_shared_layers\": 2", "\"num_kv_shared_layers\": -1", "num_kv_shared_layers: found -1");
    refused("\"num_kv_shared_layers\": 2", "\"num_kv_shared_layers\": 5", "found 5, expected 0 to 4");
    refused("\"num_kv_shared_layers\": 2", "\"num_kv_shared_layers\": 4",
            "num_kv_shared_layers: found 4, expected fewer, since no layer before layer 1 has full_attention");
}

void check_config() {
    const ModelConfig config = parse(model);
    const std::vector<molkv::CacheShape> caches = {{0, 2, 6}, {1, 2, 10}, {2, 2, 6}};
    const std::vector<molkv::SharedCache> shared = {{3, 2}, {4, 1}};
    test::that(config.caches == caches, "the KV caches");
    test::that(config.shared_caches == shared, "the layers that share a cache");
    test::that(config.expert_layers == std::vector<std::int64_t>{0, 1, 2, 3, 4}, "the layers with experts");
    test::equal(config.expert_window, 0, "the expert window");
    const ModelConfig all = parse(edited(model, "\"num_kv_shared_layers\": 2", "\"num_kv_shared_layers\": 0"));
    test::equal(all.caches.size(), 5U, "the caches of a model that shares none");
    test::that(all.caches[4] == molkv::CacheShape{4, 2, 10} && all.shared_caches.empty(), "its last layer");
}

molkv::Table table_of(DType dtype, std::int64_t stride) {
    molkv::Table table;
    table.dtype = dtype;
    table.stride = stride;
    return table;
}

// d = 8, P = 64 and two layers. The scale of a value has one dimension.
void check_records() {
    ModelConfig config = parse(model);
    config.expert_layers = {0, 1};
    molkv::Table table = table_of(DType::float16, 320);  // 16 + 2 * 128 bytes, and 4
    table.fields = {{"embedding", DType::float16, {8}, 0},
                    {"expert_value.0", DType::float16, {64}, 16},
                    {"expert_value.1", DType::float16, {64}, 144}};
    molkv::check_record(config, table, "m");
    table = table_of(DType::int8, 192);  // 16 + 2 * (4 + 64) bytes, and 4
    table.fields = {{"embedding", DType::float16, {8}, 0},
                    {"expert_scale.0", DType::float32, {1}, 16},
                    {"expert_value.0", DType::int8, {64}, 20},
                    {"expert_scale.1", DType::float32, {1}, 84},
                    {"expert_value.1", DType::int8, {64}, 88}};
    molkv::check_record(config, table, "m");
    table = table_of(DType::int4, 128);  // 16 + 2 * (4 + 32) bytes, and 4
    table.fields = {{"embedding", DType::float16, {8}, 0},
                    {"expert_scale.0", DType::float16, {2}, 16},
                    {"expert_value.0", DType::int4, {64}, 20},
                    {"expert_scale.1", DType::float16, {2}, 52},
                    {"expert_value.1", DType::int4, {64}, 56}};
    molkv::check_record(config, table, "m");
    config.per_layer_size = 48;
    test::refused([&] { molkv::check_record(config, table_of(DType::int4, 128), "m"); }, Kind::bundle,
                  "found no field 0", "a record without fields");
    table.fields[2].shape = {48};
    test::refused([&] { molkv::check_record(config, table, "m"); }, Kind::bundle, "a multiple of 32 numbers",
                  "values of 48 numbers in int4");
}

TensorInfo floats(const std::string& name, std::vector<molkv::Dimension> shape) {
    return {name, DType::float32, std::move(shape)};
}

TensorInfo cache(const std::string& name, std::int64_t head_dim) {
    return {name, DType::int8, {"batch", 2, "max_length", head_dim}};
}

void check_graph() {
    ModelConfig config = parse(model);
    molkv::Graph graph;
    graph.kv_dtype = DType::int8;
    std::vector<TensorInfo> expected = {floats("inputs_embeds", {"batch", "length", 8})};
    for (const char* name : {"0", "1", "2", "3", "4"})
        expected.push_back(floats(std::string("expert_value.") + name, {"batch", "length", 64}));
    expected.push_back({"seqlens_k", DType::int32, {"batch"}});
    expected.push_back({"total_sequence_length", DType::int32, {}});
    expected.push_back({"logits_to_keep", DType::int64, {1}});
    expected.push_back(cache("past_key_values.0.key", 6));
    expected.push_back(cache("past_key_values.0.value", 6));
    expected.push_back(cache("past_key_values.1.key", 10));
    expected.push_back(cache("past_key_values.1.value", 10));
    expected.push_back(cache("past_key_values.2.key", 6));
    expected.push_back(cache("past_key_values.2.value", 6));
    test::that(molkv::graph_inputs(config, graph, 0) == expected, "the inputs of the graph");
    expected = {floats("logits", {"batch", "logits_length", 61}),
                cache("present.0.key", 6),
                cache("present.0.value", 6),
                cache("present.1.key", 10),
                cache("present.1.value", 10),
                cache("present.2.key", 6),
                cache("present.2.value", 6),
                cache("present.3.key", 6),
                cache("present.3.value", 6),
                cache("present.4.key", 10),
                cache("present.4.value", 10)};
    test::that(molkv::graph_outputs(config, graph, 0) == expected, "the outputs of the graph");
}

const std::string cpu = R"({"cpu": {"files": [{"file": "a", "length": 0, "inputs": [], "outputs": []}], "data": "b",
    "golden": "c", "dense_dtype": "float32", "kv_dtype": "float32", "window_dtype": "float32", "block_size": 0,
    "context_length": 160, "expert_window": 0, "min_onnxruntime": "1.25.1"}})";

void check_profiles() {
    const ModelConfig config = parse(model);
    const auto parse_edited = [&](const std::string& before, const std::string& after) {
        const molkv::Json json(edited(cpu, before, after), "m", Kind::bundle);
        return molkv::parse_graphs(json.root(), config);
    };
    const auto refused_graph = [&](const std::string& before, const std::string& after, const char* part) {
        test::refused([&] { static_cast<void>(parse_edited(before, after)); }, Kind::bundle, part, after);
    };
    // The graph of profile cpu may be for a shorter context than the model's.
    for (const std::int64_t length : {160, 159, 1}) {
        const auto graphs = parse_edited("\"context_length\": 160", molkv::text("\"context_length\": ", length));
        test::equal(graphs.at(0).context_length, length, "context_length");
    }
    refused_graph("\"context_length\": 160", "\"context_length\": 161", "context_length: found 161, expected 1 to 160");
    refused_graph("\"context_length\": 160", "\"context_length\": 0", "context_length: found 0");
    refused_graph("\"expert_window\": 0", "\"expert_window\": 1", "expert_window: found 1");
    refused_graph("\"window_dtype\": \"float32\"", "\"window_dtype\": \"int8\"", "window_dtype: found int8");
    refused_graph("{\"cpu\"", "{\"coreml\"", "found the profile coreml, expected cpu");
}

}  // namespace

int main() {
    check_ranges();
    check_types();
    check_fields();
    check_relations();
    check_config();
    check_records();
    check_graph();
    check_profiles();
    return test::finish();
}
