// Loads the graphs of runtimes/conformance, runs one of them, and checks what is refused. The arguments are a library
// of ONNX Runtime and the folder runtimes/conformance.
#include <dlfcn.h>

#include <algorithm>
#include <cmath>
#include <filesystem>
#include <memory>

#include "bundle_files.h"
#include "check.h"
#include "onnxruntime.h"

namespace fs = std::filesystem;
namespace test = molkv::test;
using molkv::Kind;

namespace {

const OrtApiBase* load_library(const char* path) {
    void* library = ::dlopen(path, RTLD_NOW);
    if (library == nullptr) molkv::fail(Kind::provider, path, ": ", ::dlerror());
    return reinterpret_cast<const OrtApiBase* (*)()>(::dlsym(library, "OrtGetApiBase"))();
}

molkv::Bundle open_bundle(const fs::path& folder) {
    return {std::make_shared<molkv::Folder>(folder.string()), {"cpu", "coreml", "nnapi"}, ""};
}

std::unique_ptr<molkv::GraphSession> load(const molkv::OnnxRuntime& runtime, const molkv::Bundle& bundle,
                                          const molkv::GraphFile& file, const molkv::Target& target = {}) {
    const auto weights = std::make_shared<const molkv::MappedFile>(bundle.map(bundle.graph().data));
    return std::make_unique<molkv::GraphSession>(runtime, bundle, file, weights, target);
}

void check_graphs(const molkv::OnnxRuntime& runtime, const fs::path& bundles) {
    std::size_t loaded = 0;
    for (const auto& entry : fs::directory_iterator(bundles)) {
        const molkv::Bundle bundle = open_bundle(entry.path());
        for (const molkv::GraphFile& file : bundle.graph().files) {
            molkv::Target target;
            target.required = true;
            target.threads = 1;
            const auto session = load(runtime, bundle, file, target);
            const auto& places = session->placements();
            test::equal(places.size(), 1U, "the number of providers");
            test::equal(places.front().provider, "CPUExecutionProvider", "the provider");
            test::that(places.front().nodes > 5 && places.front().partitions == 0, "the nodes");
            loaded++;
        }
    }
    test::that(loaded >= 16, "the number of graphs");
}

// Memory for an input or output of a graph, with zeros.
struct Buffer {
    std::vector<std::int64_t> shape;
    std::vector<std::int64_t> memory;

    Buffer(const molkv::TensorInfo& tensor, const std::map<std::string, std::int64_t>& sizes) {
        std::size_t count = 1;
        for (const molkv::Dimension& dimension : tensor.shape) {
            shape.push_back(dimension.size >= 0 ? dimension.size : sizes.at(dimension.name));
            count *= static_cast<std::size_t>(shape.back());
        }
        memory.resize((molkv::dtype_bytes(tensor.dtype, count) + 7) / 8);
    }
    template <typename T>
    [[nodiscard]] T* as() {
        return reinterpret_cast<T*>(memory.data());
    }
};

// Runs the graph of a dense model for one token with past and present in different memory.
void check_run(const molkv::OnnxRuntime& runtime, const fs::path& bundles) {
    const molkv::Bundle bundle = open_bundle(bundles / "dense");
    const molkv::GraphFile& file = bundle.graph().files.front();
    const auto session = load(runtime, bundle, file);
    molkv::BoundCall call(*session);
    const std::map<std::string, std::int64_t> sizes = {
        {"batch", 1}, {"length", 1}, {"max_length", 8}, {"logits_length", 1}};
    std::map<std::string, Buffer> buffers;
    for (const auto& tensor : file.inputs) buffers.emplace(tensor.name, Buffer(tensor, sizes));
    for (const auto& tensor : file.outputs) buffers.emplace(tensor.name, Buffer(tensor, sizes));
    const auto size = static_cast<std::size_t>(bundle.config().hidden_size);
    for (std::size_t i = 0; i < size; i++) {
        buffers.at("inputs_embeds").as<float>()[i] = 0.01F * static_cast<float>(i);
    }
    *buffers.at("total_sequence_length").as<std::int32_t>() = 1;
    *buffers.at("logits_to_keep").as<std::int64_t>() = 1;
    for (const auto& tensor : file.inputs) {
        Buffer& buffer = buffers.at(tensor.name);
        call.input(tensor.name, tensor.dtype, buffer.shape, buffer.memory.data());
    }
    for (const auto& tensor : file.outputs) {
        Buffer& buffer = buffers.at(tensor.name);
        call.output(tensor.name, tensor.dtype, buffer.shape, buffer.memory.data());
    }
    call.run();
    const auto vocab_size = static_cast<std::size_t>(bundle.config().vocab_size);
    const std::span<const float> logits(buffers.at("logits").as<float>(), vocab_size);
    const auto is_number = [](float logit) { return std::isfinite(logit) && logit != 0; };
    test::that(std::all_of(logits.begin(), logits.end(), is_number), "the logits are numbers");
    const std::vector<float> before(logits.begin(), logits.end());

    // No logits: an output without data.
    *buffers.at("logits_to_keep").as<std::int64_t>() = 0;
    const std::vector<std::int64_t> none = {1, 0, static_cast<std::int64_t>(vocab_size)};
    call.output("logits", molkv::DType::float32, none, nullptr);
    call.run();

    *buffers.at("logits_to_keep").as<std::int64_t>() = 1;
    call.output("logits", molkv::DType::float32, buffers.at("logits").shape, buffers.at("logits").memory.data());
    molkv::BoundCall moved = std::move(call);
    moved.run();
    test::that(std::equal(logits.begin(), logits.end(), before.begin()), "the same logits again");

    *buffers.at("total_sequence_length").as<std::int32_t>() = 1000;
    *buffers.at("seqlens_k").as<std::int32_t>() = 999;
    test::refused([&] { moved.run(); }, Kind::bundle, "the dense graph fails: ", "a position beyond the cache");
}

void check_refusals(const molkv::OnnxRuntime& runtime, const fs::path& bundles) {
    test::refused([&] { static_cast<void>(runtime.preset("tpu")); }, Kind::provider,
                  "provider \"tpu\" is unknown, expected one of cpu, xnnpack, coreml, nnapi, openvino, qnn, cuda",
                  "an unknown provider");
    test::refused([&] { static_cast<void>(runtime.preset("nnapi")); }, Kind::provider,
                  "(NnapiExecutionProvider) is not in this ONNX Runtime", "a missing provider");
    const molkv::Preset& cpu = runtime.preset("cpu");
    test::refused(
        [&] {
            molkv::OnnxRuntime::check_options(cpu, {{"device", "1"}});
        },
        Kind::request, "found device, expected none", "an option of the provider cpu");
    const auto& all = molkv::presets();
    const auto coreml =
        std::find_if(all.begin(), all.end(), [](const auto& one) { return one.name == std::string("coreml"); });
    molkv::OnnxRuntime::check_options(*coreml, {{"ModelFormat", "NeuralNetwork"}, {"ModelCacheDirectory", "/x"}});
    test::refused(
        [&] {
            molkv::OnnxRuntime::check_options(*coreml, {{"ModelFormat", "x"}});
        },
        Kind::request, "expected ModelFormat to be one of MLProgram, NeuralNetwork", "a wrong value");
    test::refused(
        [&] {
            molkv::OnnxRuntime::check_options(*coreml, {{"model_format", "x"}});
        },
        Kind::request, "expected one of AllowLowPrecisionAccumulationOnGPU, EnableOnSubgraphs", "a wrong option");
    for (const int threads : {-1, 100000}) {
        molkv::Target target;
        target.threads = threads;
        test::refused([&] { static_cast<void>(molkv::session_options(runtime, target)); }, Kind::request,
                      molkv::text("threads: found ", threads), "an impossible number of threads");
    }
    // A manifest that says something else than the graph.
    const molkv::Bundle bundle = open_bundle(bundles / "dense");
    molkv::GraphFile file = bundle.graph().files.front();
    file.outputs.back().shape.back().size++;
    test::refused([&] { static_cast<void>(load(runtime, bundle, file)); }, Kind::bundle, "its outputs differ",
                  "another shape");
    file = bundle.graph().files.front();
    file.inputs.front().shape.front().name = "other";
    test::refused([&] { static_cast<void>(load(runtime, bundle, file)); }, Kind::bundle, "its inputs differ",
                  "another name of a dimension");
    file = bundle.graph().files.front();
    std::swap(file.inputs[0], file.inputs[1]);
    test::refused([&] { static_cast<void>(load(runtime, bundle, file)); }, Kind::bundle, "its inputs differ",
                  "another order");
}

const char* old_version() noexcept {
    return "1.17.3";
}

const OrtApi* no_api(std::uint32_t /*version*/) noexcept {
    return nullptr;
}

const char* new_version() noexcept {
    return "1.99.0";
}

void check_versions(const molkv::OnnxRuntime& runtime) {
    test::refused([] { const molkv::OnnxRuntime none(nullptr); }, Kind::provider, "found no library", "no library");
    const OrtApiBase old{no_api, old_version};
    test::refused([&] { const molkv::OnnxRuntime library(&old); }, Kind::provider,
                  "onnxruntime is 1.17.3, expected 1.25.0 or newer", "an old library");
    const OrtApiBase empty{no_api, new_version};
    test::refused([&] { const molkv::OnnxRuntime library(&empty); }, Kind::provider, "has no API of version 25",
                  "a library without the API");
    runtime.check_version("1.25.1");
    runtime.check_version(runtime.version());
    test::refused([&] { runtime.check_version("1.1000.0"); }, Kind::provider, "expected 1.1000.0 or newer",
                  "a newer library is needed");
    test::refused([&] { runtime.check_version("2.0.0"); }, Kind::provider, "expected 2.0.0 or newer",
                  "a newer library is needed");
}

}  // namespace

int main(int count, char** arguments) {
    if (count != 3) return 2;
    const fs::path bundles = fs::path(arguments[2]) / "bundles";
    const molkv::OnnxRuntime runtime(load_library(arguments[1]));
    check_versions(runtime);
    check_refusals(runtime, bundles);
    check_graphs(runtime, bundles);
    check_run(runtime, bundles);
    return test::finish();
}
