// Manifests: edits of the manifests of runtimes/conformance, each with a right hash. The argument is that folder.
#include "bundle_files.h"
#include "check.h"
#include "interface.h"
#include "manifest.h"
#include "record.h"

namespace test = molkv::test;
using molkv::Kind;

namespace {

std::string manifest_of(const std::filesystem::path& conformance, const char* bundle) {
    return test::read_file(conformance / "bundles" / bundle / "manifest.json");
}

// A manifest whose text the cases edit.
class Edits {
 public:
    explicit Edits(std::string content) : content_(std::move(content)) {}

    // Return the manifest with the first `before` replaced.
    [[nodiscard]] std::string edit(std::string_view before, std::string_view after) const {
        std::string content = content_;
        const std::size_t place = content.find(before);
        if (place == std::string::npos) molkv::fail(Kind::request, "the manifest has no ", before);
        return test::sealed(content.replace(place, before.size(), after));
    }

    void refused(std::string_view before, std::string_view after, std::string_view part) const {
        test::refused([&] { check(edit(before, after)); }, Kind::bundle, part, after);
    }

    // Make all checks that need no other file.
    static void check(const std::string& content) {
        const molkv::Manifest manifest = molkv::parse_manifest(content, "m");
        molkv::check_record(manifest.model, manifest.experts, "m");
        for (const molkv::Graph& graph : manifest.graphs) {
            molkv::ModelConfig config = manifest.model;
            config.max_position_embeddings = graph.context_length;
            config.expert_window = graph.expert_window;
            for (const molkv::GraphFile& file : graph.files) molkv::check_interface(config, graph, file, "m");
        }
    }

 private:
    std::string content_;
};

void check_document(const Edits& edits) {
    test::refused([&] { molkv::parse_manifest("\xEF\xBB\xBF" + edits.edit("{", "{"), "m"); }, Kind::bundle,
                  "not valid JSON", "a byte order mark");
    test::refused([] { molkv::parse_manifest("[]", "m"); }, Kind::bundle, "expected an object", "a list");
    test::refused([] { molkv::parse_manifest("{}", "m"); }, Kind::bundle, "schema_version", "an empty object");
    edits.refused("\"schema_version\": 4", "\"schema_version\": 4.0", "schema_version: found a number");
    edits.refused("\"schema_version\": 4", "\"schema_version\": \"4\"", "schema_version: found a text");
    edits.refused("\"schema_version\": 4", "\"schema_version\": 99999999999999999999", "schema_version");
    test::refused([&] { molkv::parse_manifest(" " + edits.edit("{", "{"), "m"); }, Kind::bundle, "but the file has",
                  "a changed byte");
    std::string content = edits.edit("{", "{");
    content[content.rfind("\"sha256\": \"") + 11] = 'G';
    test::refused([&] { molkv::parse_manifest(content, "m"); }, Kind::bundle, "sha256: found G", "a wrong digit");
}

void check_model(const Edits& edits) {
    edits.refused("\"vocab_size\": 61", "\"vocab_size\": 0", "model.vocab_size: found 0");
    edits.refused("\"vocab_size\": 61", "\"vocab_size\": 2147483648", "model.vocab_size");
    edits.refused("\"num_hidden_layers\": 2", "\"num_hidden_layers\": 65537", "model.num_hidden_layers");
    edits.refused("\"num_hidden_layers\": 2", "\"num_hidden_layers\": 65536", "inputs");
    edits.refused("\"max_position_embeddings\": 160", "\"max_position_embeddings\": 16777217", "max_position");
    edits.refused("\"num_key_value_heads\": 2", "\"num_key_value_heads\": 3", "multiple of num_key_value_heads");
    edits.refused("\"num_key_value_heads\": 2", "\"num_key_value_heads\": 0", "num_key_value_heads: found 0");
    edits.refused("\"head_dim\": 16", "\"head_dim\": 15", "head_dim: found 15");
    edits.refused("\"hidden_act\": \"silu\"", "\"hidden_act\": \"relu\"", "hidden_act: found relu");
    edits.refused("\"rope_theta\": 10000.0", "\"rope_theta\": 0", "rope_theta: found 0");
    edits.refused("\"rope_theta\": 10000.0", "\"rope_theta\": 1e999", "rope_theta");
    edits.refused("\"rope_theta\": 10000.0", "\"rope_theta\": true", "rope_theta: found a boolean");
    edits.refused("\"num_experts\": 2", "\"num_experts\": 0", "since num_experts is 0");
    edits.refused("\"num_experts\": 2", "\"num_experts\": 2147483647", "tables.experts.fields");
    edits.refused("\"expert_layers\": [\n   1", "\"expert_layers\": [\n   2", "expert_layers[0]: found 2");
    edits.refused("\"expert_layers\": [\n   1", "\"expert_layers\": [\n   1, 1", "ascending");
    edits.refused("\"expert_layers\": [\n   1", "\"expert_layers\": [\n   0", "tables.experts.fields");
    edits.refused("\"expert_layers\": [\n   1", "\"expert_layers\": [", "at least one");
    edits.refused("\"expert_layers\": [\n   1\n  ]", "\"expert_layers\": {\"a\": 1}", "expert_layers: found an object");
    edits.refused("\"expert_key_size\": 8", "\"expert_key_size\": 7",
                  "expert_key_size: found 7, expected an even number");
    edits.refused("\"expert_key_size\": 8", "\"expert_key_size\": 0", "expert_key_size: found 0");
    edits.refused("\"expert_window\": 5", "\"expert_window\": 0", "expert_window: found 0");
    edits.refused("\"expert_gate\": \"sigmoid\"", "\"expert_gate\": \"relu\"", "expert_gate: found relu");
    edits.refused("\"hidden_size\": 64", "\"hidden_size\": 2147483647", "tables.experts");
}

void check_graphs(const Edits& edits) {
    edits.refused("\"dense_dtype\": \"float32\"", "\"dense_dtype\": \"qdq-int8\"", "dense_dtype: found qdq-int8");
    edits.refused("\"dense_dtype\": \"float32\"", "\"dense_dtype\": \"int4\"", "block_size: found 0");
    edits.refused("\"block_size\": 0", "\"block_size\": 32", "block_size: found 32");
    edits.refused("\"kv_dtype\": \"float32\"", "\"kv_dtype\": \"float16\"", "kv_dtype: found float16");
    edits.refused("\"kv_dtype\": \"float32\"", "\"kv_dtype\": \"int8\"", "inputs");
    edits.refused("\"min_onnxruntime\": \"1.", "\"min_onnxruntime\": \"1..", "min_onnxruntime");
    edits.refused("\"min_onnxruntime\": \"1.", "\"min_onnxruntime\": \"123456.", "min_onnxruntime");
    edits.refused("\"min_onnxruntime\": \"1.", "\"min_onnxruntime\": \"1.1.", "min_onnxruntime");
    edits.refused("\"batch\"", "\"Batch\"", "inputs");
    edits.refused("\"batch\"", "-1", "shape[0]: found -1");
    edits.refused("\"batch\"", "null", "shape[0]: found null");
    edits.refused("\"expert_mask\"", "\"mask\"", "inputs");
    edits.refused("\"cpu\": {", "\"coreml\": {", "graphs.coreml");
    edits.refused("\"file\": \"model.onnx\"", "\"file\": \"model.ort\"",
                  "data: found model.onnx.data, expected the first");
}

void check_rest(const Edits& edits) {
    edits.refused("\"first_row\": 0", "\"first_row\": -1", "first_row: found -1");
    edits.refused("\"size\": 58752", "\"size\": 59648", "shards[0]: found a file of 59648 bytes");
    edits.refused("\"count\": 61", "\"count\": 62", "count: found 62");
    edits.refused("\"count\": 61", "\"count\": 0", "count: found 0");
    edits.refused("\"data_offset\": 4096", "\"data_offset\": 9223372036854775807",
                  "shards[0]: found a file of 58752 bytes");
    edits.refused("\"data_offset\": 4096", "\"data_offset\": 7", "data_offset: found 7");
    edits.refused("\"stride\": 896", "\"stride\": 0", "stride: found 0");
    edits.refused("\"stride\": 896", "\"stride\": 9223372036854775807", "stride");
    edits.refused("\"id\": \"c", "\"id\": \"C", "tables.experts.id");
    edits.refused("\"temperature\": 0.0", "\"temperature\": 1e-7", "generation.sampling.temperature: found 1e-07");
    edits.refused("\"eos_token_ids\": [", "\"eos_token_ids\": [-1, ", "eos_token_ids[0]: found -1");
    edits.refused("\"chat_template\": \"\"", "\"chat_template\": \"golden.safetensors\"", "chat_template");
    edits.refused("\"golden.safetensors\": {", "\"..\": {", "the name \"..\"");
    edits.refused("\"golden.safetensors\": {", "\"\": {", "the name \"\"");
    edits.refused("\"golden.safetensors\": {", "\"a\\u0000\": {", "the name \"a");
    edits.refused("\"golden.safetensors\": {", "\"manifest.json\": {", "the name \"manifest.json\"");
    edits.refused("\"tools\": {", "\"tools\": {\"x\": 1, ", "provenance.tools.x: found an integer");
}

}  // namespace

int main(int count, char** arguments) {
    if (count != 2) return 2;
    const Edits edits(manifest_of(arguments[1], "molkv"));
    Edits::check(edits.edit("\"cpu\"", "\"cpu\""));
    check_document(edits);
    check_model(edits);
    check_graphs(edits);
    check_rest(edits);
    const Edits statics(manifest_of(arguments[1], "coreml"));
    Edits::check(statics.edit("{", "{"));
    statics.refused("\"length\": 1,", "\"length\": 2,", "files[0].length: found 2");
    statics.refused("\"length\": 8,", "\"length\": 1,", "files[1].length: found 1");
    statics.refused("\"file\": \"model.coreml.8.onnx\"", "\"file\": \"model.coreml.8.ort\"", "or none");
    statics.refused("\"window_dtype\": \"float32\"", "\"window_dtype\": \"int8\"", "window_dtype: found int8");
    const Edits dense(manifest_of(arguments[1], "dense"));
    Edits::check(dense.edit("{", "{"));
    dense.refused("\"expert_gate\": \"none\"", "\"expert_gate\": \"sigmoid\"", "none in a model without experts");
    dense.refused("\"expert_window\": 0", "\"expert_window\": 1", "expert_window: found 1");
    return test::finish();
}
