// Opening of a model: bundle, graphs, store and tokenizer.
#include "model.h"

#include <utility>

namespace molkv {

namespace {

// Return the preset of a target after checking the options that the user gave.
const Preset& checked_preset(const OnnxRuntime& runtime, const Target& target) {
    const Preset& preset = runtime.preset(target.provider);
    OnnxRuntime::check_options(preset, target.options);
    return preset;
}

}  // namespace

Model::Model(const OrtApiBase* base, std::shared_ptr<const FileSource> source, const Target& target,
             const std::string& profile, bool skip_provider_check)
    : runtime_(base),
      preset_(checked_preset(runtime_, target)),
      bundle_(std::move(source), preset_.profiles, profile),
      store_(bundle_),
      decoder_(bundle_) {
    const Graph& graph = bundle_.graph();
    runtime_.check_version(graph.min_onnxruntime);
    std::shared_ptr<const MappedFile> weights;
    for (const GraphFile& file : graph.files) {
        if (graph.is_ort_format()) {  // each file holds its own weights
            weights = std::make_shared<const MappedFile>(bundle_.map(file.file));
        } else if (!weights) {
            weights = std::make_shared<const MappedFile>(bundle_.map(graph.data));
        }
        graphs_.emplace(file.length, std::make_unique<GraphSession>(runtime_, bundle_, file, weights, target));
    }
    if (target.provider != "cpu" && !skip_provider_check) probe(*this);
}

const Tokenizer& Model::tokenizer() const {
    std::call_once(tokenizer_once_, [this] {
        constexpr const char* name = "tokenizer.json";
        if (!has_tokenizer()) {
            fail(Kind::bundle, bundle_.where(), ": has no ", name, ", expected one; give token ids instead of text");
        }
        tokenizer_ = std::make_unique<Tokenizer>(bundle_.read(name), bundle_.path(name));
    });
    return *tokenizer_;
}

std::string Model::describe_placements() const {
    std::string described;
    for (const auto& [length, session] : graphs_) {
        if (!described.empty()) described += "; ";
        if (length != 0) described += text("calls of ", length, ": ");
        if (session->placements().empty()) described += "unknown, since the graph is in ORT format";
        const char* separator = "";
        for (const Placement& placement : session->placements()) {
            described += text(separator, placement.nodes, " nodes on ", placement.provider);
            if (placement.partitions != 0) described += text(" in ", placement.partitions, " partition(s)");
            separator = ", ";
        }
    }
    return described;
}

void Model::check_ids(std::string_view what, std::span<const std::int32_t> ids) const {
    const std::int64_t vocab_size = config().vocab_size;
    for (const std::int32_t id : ids) {
        if (id >= 0 && id < vocab_size) continue;
        fail(Kind::request, what, ": token id ", id, " is outside the vocabulary, expected 0 to ", vocab_size - 1);
    }
}

}  // namespace molkv
