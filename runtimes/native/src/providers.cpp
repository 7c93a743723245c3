// Execution providers: whether this library has them, their options, and how a session gets them.
#include <dlfcn.h>

#include <algorithm>
#include <thread>

#include "onnxruntime.h"

namespace molkv {

namespace {

// Return texts as one: "a, b, c".
template <typename Items, typename Name>
std::string joined(const Items& items, const Name& name) {
    std::string line;
    for (const auto& item : items) line += (line.empty() ? "" : ", ") + std::string(name(item));
    return line;
}

int core_count() {
    return static_cast<int>(std::max(std::thread::hardware_concurrency(), 1U));
}

// Keys and values as ONNX Runtime takes them: arrays of C strings.
struct OptionArrays {
    std::vector<const char*> keys;
    std::vector<const char*> values;

    explicit OptionArrays(const std::map<std::string, std::string>& options) {
        for (const auto& [key, value] : options) {
            keys.push_back(key.c_str());
            values.push_back(value.c_str());
        }
    }
};

// ONNX Runtime's table has no function for NNAPI. Its library exports this C function instead.
using AppendNnapi = OrtStatus* (*)(OrtSessionOptions*, std::uint32_t);

AppendNnapi find_append_nnapi(const OnnxRuntime& runtime) {
    constexpr const char* name = "OrtSessionOptionsAppendExecutionProvider_Nnapi";
    void* function = ::dlsym(RTLD_DEFAULT, name);
    Dl_info library{};
    // On Android, RTLD_DEFAULT does not search a library that only Java has loaded.
    if (function == nullptr && ::dladdr(reinterpret_cast<const void*>(runtime.base().GetApi), &library) != 0) {
        // The handle stays open, as the caller keeps the library loaded anyway.
        void* handle = ::dlopen(library.dli_fname, RTLD_NOW | RTLD_NOLOAD);
        if (handle != nullptr) function = ::dlsym(handle, name);
    }
    return reinterpret_cast<AppendNnapi>(function);
}

std::uint32_t nnapi_flags(const std::map<std::string, std::string>& options) {
    // The flags of nnapi_provider_factory.h.
    const std::map<std::string, std::uint32_t> bits = {
        {"USE_FP16", 1}, {"USE_NCHW", 2}, {"CPU_DISABLED", 4}, {"CPU_ONLY", 8}};
    std::uint32_t flags = 0;
    for (const auto& [name, value] : options) flags |= value == "1" ? bits.at(name) : 0;
    return flags;
}

OrtStatus* append_nnapi(const OnnxRuntime& runtime, OrtSessionOptions* session,
                        const std::map<std::string, std::string>& options) {
    const AppendNnapi append = find_append_nnapi(runtime);
    if (append == nullptr) {
        fail(Kind::provider,
             "provider \"nnapi\": this ONNX Runtime does not export "
             "OrtSessionOptionsAppendExecutionProvider_Nnapi, expected the library onnxruntime-android");
    }
    return append(session, nnapi_flags(options));
}

OrtStatus* append_cuda(const OnnxRuntime& runtime, OrtSessionOptions* session, const OptionArrays& options) {
    const OrtApi& api = runtime.api();
    OrtCUDAProviderOptionsV2* created = nullptr;
    if (OrtStatus* status = api.CreateCUDAProviderOptions(&created)) return status;
    const Owned<OrtCUDAProviderOptionsV2> cuda(created, api.ReleaseCUDAProviderOptions);
    if (OrtStatus* status =
            api.UpdateCUDAProviderOptions(created, options.keys.data(), options.values.data(), options.keys.size())) {
        return status;
    }
    return api.SessionOptionsAppendExecutionProvider_CUDA_V2(session, created);
}

// Add a provider to the options of a session. The session then has it and the CPU provider, and no other.
void append_provider(const OnnxRuntime& runtime, OrtSessionOptions* session, const Preset& preset,
                     const std::map<std::string, std::string>& options) {
    const std::string_view name = preset.name;
    const OptionArrays arrays(options);
    OrtStatus* status = nullptr;
    if (name == "nnapi") {
        status = append_nnapi(runtime, session, options);
    } else if (name == "cuda") {
        status = append_cuda(runtime, session, arrays);
    } else if (name != "cpu") {
        status = runtime.api().SessionOptionsAppendExecutionProvider(session, preset.appended, arrays.keys.data(),
                                                                     arrays.values.data(), arrays.keys.size());
    }
    runtime.check(status, Kind::provider, text("provider \"", name, "\" refuses its options"));
}

}  // namespace

const Preset& OnnxRuntime::preset(const std::string& name) const {
    const std::vector<std::string> built_in = available_providers();
    std::vector<Preset> available;
    const auto is_built_in = [&](const Preset& preset) {
        return std::find(built_in.begin(), built_in.end(), preset.provider) != built_in.end();
    };
    std::copy_if(presets().begin(), presets().end(), std::back_inserter(available), is_built_in);
    const auto name_of = [](const Preset& preset) { return preset.name; };
    const auto found =
        std::find_if(presets().begin(), presets().end(), [&](const Preset& preset) { return preset.name == name; });
    if (found == presets().end()) {
        fail(Kind::provider, "provider \"", name, "\" is unknown, expected one of ", joined(presets(), name_of),
             "; available: ", joined(available, name_of));
    }
    if (!is_built_in(*found)) {
        fail(Kind::provider, "provider \"", name, "\" (", found->provider, ") is not in this ONNX Runtime ", version_,
             "; available: ", joined(available, name_of));
    }
    return *found;
}

void OnnxRuntime::check_options(const Preset& preset, const std::map<std::string, std::string>& options) {
    for (const auto& [name, value] : options) {
        const auto known = preset.known.find(name);
        if (known == preset.known.end()) {
            const std::string names = joined(preset.known, [](const auto& option) { return option.first; });
            fail(Kind::request, "provider_options: found ", name, ", expected ",
                 names.empty() ? "none" : "one of " + names, " (the options of provider ", preset.name, ")");
        }
        const auto& values = known->second;
        if (!values.empty() && std::find(values.begin(), values.end(), value) == values.end()) {
            fail(Kind::request, "provider_options: found ", name, "=", value, ", expected ", name, " to be one of ",
                 joined(values, [](const std::string& one) { return one; }));
        }
    }
}

Owned<OrtSessionOptions> session_options(const OnnxRuntime& runtime, const Target& target) {
    if (target.threads < 0 || target.threads > core_count()) {
        fail(Kind::request, "threads: found ", target.threads, ", expected 0 (ONNX Runtime decides) or 1 to ",
             core_count(), " (the cores of this machine)");
    }
    const Preset& preset = runtime.preset(target.provider);
    OnnxRuntime::check_options(preset, target.options);
    const OrtApi& api = runtime.api();
    const auto check = [&](OrtStatus* status) { runtime.check(status, Kind::provider, "the options of a session"); };
    OrtSessionOptions* created = nullptr;
    check(api.CreateSessionOptions(&created));
    Owned<OrtSessionOptions> session(created, api.ReleaseSessionOptions);
    check(api.SetSessionLogSeverityLevel(created, ORT_LOGGING_LEVEL_FATAL));  // errors come as statuses
    check(api.AddSessionConfigEntry(created, "session.record_ep_graph_assignment_info", "1"));
    for (const auto& [name, value] : preset.config) {
        check(api.AddSessionConfigEntry(created, name.c_str(), value.c_str()));
    }
    std::map<std::string, std::string> options = preset.options;
    int threads = target.threads;
    if (*preset.threads != '\0') {
        options[preset.threads] = text(threads > 0 ? threads : core_count());
        threads = 1;
    }
    for (const auto& [name, value] : target.options) options[name] = value;
    check(api.SetIntraOpNumThreads(created, threads));
    append_provider(runtime, created, preset, options);
    return session;
}

}  // namespace molkv
