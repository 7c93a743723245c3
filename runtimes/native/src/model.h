// An open model: everything that its sessions share.
#pragma once

#include <map>
#include <memory>
#include <mutex>
#include <span>
#include <string>
#include <string_view>

#include "bundle.h"
#include "onnxruntime.h"
#include "record_decoder.h"
#include "store.h"
#include "tokenizer.h"

namespace molkv {

class Model {
 public:
    // Open a bundle and load the graphs of its profile. Without `skip_provider_check`, a provider other than "cpu" is
    // compared with a golden text first (probe.cpp).
    Model(const OrtApiBase* base, std::shared_ptr<const FileSource> source, const Target& target,
          const std::string& profile, bool skip_provider_check);

    [[nodiscard]] const Bundle& bundle() const { return bundle_; }
    [[nodiscard]] const ModelConfig& config() const { return bundle_.config(); }
    [[nodiscard]] const Preset& preset() const { return preset_; }
    // The graphs by the number of positions of a call, ascending; 0: any number.
    [[nodiscard]] const std::map<std::int64_t, std::unique_ptr<GraphSession>>& graphs() const { return graphs_; }
    [[nodiscard]] const Store& store() const { return store_; }
    [[nodiscard]] const RecordDecoder& decoder() const { return decoder_; }
    // Throws a bundle error if there is no tokenizer, or none that this driver supports.
    [[nodiscard]] const Tokenizer& tokenizer() const;
    [[nodiscard]] bool has_tokenizer() const { return bundle_.has("tokenizer.json"); }
    // A text that says where nodes run.
    [[nodiscard]] std::string describe_placements() const;
    // Throw a request error if an id is outside the vocabulary. `what` names the ids.
    void check_ids(std::string_view what, std::span<const std::int32_t> ids) const;

 private:
    OnnxRuntime runtime_;
    const Preset& preset_;
    Bundle bundle_;
    std::map<std::int64_t, std::unique_ptr<GraphSession>> graphs_;
    Store store_;
    RecordDecoder decoder_;
    mutable std::once_flag tokenizer_once_;
    mutable std::unique_ptr<Tokenizer> tokenizer_;  // read when it is first used
};

// Compute the beginning of a golden text, and throw a provider error if a logit is wrong. probe.cpp has it.
void probe(const Model& model);

}  // namespace molkv
