// The memory that the graph of profile "cpu" gets for KV caches: outputs are bound to the memory of their inputs, and
// those of a layer that shares a cache to the memory of its source's cache, so the graph writes in place.
// Usage: test_bound_caches LIBRARY-OF-ONNXRUNTIME CONFORMANCE-FOLDER
#include <onnxruntime_c_api.h>

#include <filesystem>
#include <map>
#include <string>

#include "check.h"
#include "handles.h"
#include "model.h"
#include "sequences.h"

namespace test = molkv::test;

namespace {

// NOLINTBEGIN(cppcoreguidelines-avoid-non-const-global-variables): functions of ONNX Runtime's API have no other state
const OrtApiBase* real_base = nullptr;
const OrtApi* real = nullptr;
OrtApi wrapped_api;
std::map<std::string, const void*> bound;  // the memory of each input and output, as it was bound last
// NOLINTEND(cppcoreguidelines-avoid-non-const-global-variables)

void keep(const char* name, const OrtValue* value) {
    void* data = nullptr;
    // NOLINTNEXTLINE(cppcoreguidelines-pro-type-const-cast): the API has no function for const tensors
    if (auto* status = real->GetTensorMutableData(const_cast<OrtValue*>(value), &data)) real->ReleaseStatus(status);
    bound[name] = data;
}

OrtStatusPtr bind_input(OrtIoBinding* binding, const char* name, const OrtValue* value) noexcept {
    keep(name, value);
    return real->BindInput(binding, name, value);
}

OrtStatusPtr bind_output(OrtIoBinding* binding, const char* name, const OrtValue* value) noexcept {
    keep(name, value);
    return real->BindOutput(binding, name, value);
}

const OrtApi* wrapped_get_api(std::uint32_t version) noexcept {
    real = real_base->GetApi(version);
    if (real == nullptr) return nullptr;
    wrapped_api = *real;
    wrapped_api.BindInput = bind_input;
    wrapped_api.BindOutput = bind_output;
    return &wrapped_api;
}

const char* wrapped_version() noexcept {
    return real_base->GetVersionString();
}

void same_memory(const std::string& output, const std::string& input) {
    const bool exist = bound.contains(output) && bound.contains(input);
    test::that(exist && bound[output] != nullptr && bound[output] == bound[input],
               molkv::text(output, " has other memory than ", input));
}

void check_bound(const molkv::ModelConfig& config) {
    for (const std::string kind : {".key", ".value"}) {
        for (const molkv::CacheShape& cache : config.caches)
            same_memory(molkv::text("present.", cache.layer, kind), molkv::text("past_key_values.", cache.layer, kind));
        for (const molkv::SharedCache& shared : config.shared_caches)
            same_memory(molkv::text("present.", shared.layer, kind),
                        molkv::text("past_key_values.", config.caches.at(shared.source).layer, kind));
    }
}

}  // namespace

int main(int count, char** arguments) {
    if (count != 3) {
        std::cerr << "usage: test_bound_caches LIBRARY-OF-ONNXRUNTIME CONFORMANCE-FOLDER\n";
        return 2;
    }
    real_base = test::load_onnxruntime(arguments[1]);
    const OrtApiBase base = {wrapped_get_api, wrapped_version};
    const std::filesystem::path bundles = std::filesystem::path(arguments[2]) / "bundles";
    for (const std::string name : {"molkv", "gemma4"}) {
        const molkv::Model model(&base, std::make_shared<molkv::Folder>((bundles / name).string()), molkv::Target{}, "",
                                 false);
        test::that(name != "gemma4" || !model.config().shared_caches.empty(), name + " has layers that share a cache");
        bound.clear();
        molkv::Sequences sequences(model, 2, 0, 0);  // it binds the decode step
        check_bound(model.config());
        for (const int sequence : {1, 0}) {
            bound.clear();
            sequences.prefill(sequence, std::vector<std::int32_t>{3, 1, 4});
            check_bound(model.config());
        }
    }
    return test::finish();
}
