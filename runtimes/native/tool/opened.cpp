// Loading ONNX Runtime with dlopen, and opening a bundle with the options of the command line.
#include "opened.h"

#include <dlfcn.h>

#include <algorithm>
#include <array>
#include <cstdlib>
#include <filesystem>
#include <iostream>

#include "errors.h"

namespace tool {

namespace {

constexpr std::int64_t most_threads = 1024;

#if defined(__APPLE__)
constexpr std::array library_names = {"libonnxruntime.dylib", "libonnxruntime.1.dylib"};
#else
constexpr std::array library_names = {"libonnxruntime.so", "libonnxruntime.so.1"};
#endif

// Return the value of an option that has one of these values, or the default.
std::string choice(const Arguments& arguments, std::string_view option, const std::vector<std::string>& values,
                   std::string_view otherwise) {
    auto found = arguments.text(option, otherwise);
    if (!arguments.has(option) || std::find(values.begin(), values.end(), found) != values.end()) return found;
    std::string message = std::string(option) + ": found '" + found + "', expected one of";
    for (const auto& each : values) message += " " + each;
    throw UsageError(message);
}

// A path that the caller gave. dlopen looks for a name without a slash in the system's folders only.
std::string library_path(const std::string& given) {
    if (given.empty()) throw UsageError("--onnxruntime: found '', expected the path of ONNX Runtime's library");
    const bool is_here = given.find('/') == std::string::npos && std::filesystem::exists(given);
    return is_here ? "./" + given : given;
}

std::vector<std::string> candidates(const Arguments& arguments) {
    if (arguments.has("--onnxruntime")) return {library_path(arguments.text("--onnxruntime", ""))};
    const char* const path = std::getenv("MOLKV_ONNXRUNTIME");
    if (path != nullptr && *path != '\0') return {library_path(path)};
    return {std::begin(library_names), std::end(library_names)};
}

const OrtApiBase* load_onnxruntime(const Arguments& arguments) {
    std::string reason;
    for (const auto& path : candidates(arguments)) {
        void* const library = dlopen(path.c_str(), RTLD_NOW | RTLD_LOCAL);  // stays loaded until the process ends
        if (library == nullptr) {
            reason = dlerror();
            continue;
        }
        using Function = const OrtApiBase* (*)();
        const auto function = reinterpret_cast<Function>(dlsym(library, "OrtGetApiBase"));
        if (function == nullptr) throw ToolError(path + ": has no OrtGetApiBase, expected a library of ONNX Runtime");
        return function();
    }
    throw ToolError("ONNX Runtime cannot be loaded: " + reason +
                    "; name the library with --onnxruntime or MOLKV_ONNXRUNTIME");
}

// Provider options, with the memory that they point to.
struct ProviderOptions {
    explicit ProviderOptions(const Arguments& arguments) : texts(arguments.all("--provider-option")) {
        for (auto& each : texts) {
            const auto equals = each.find('=');
            if (equals == std::string::npos) {
                throw UsageError("--provider-option: found '" + each + "', expected NAME=VALUE");
            }
            each[equals] = '\0';  // ends the name
            list.push_back({each.c_str(), each.c_str() + equals + 1});
        }
    }
    std::vector<std::string> texts;
    std::vector<molkv_option> list;
};

void describe(const molkv_model* model) {
    const auto info = info_of(model);
    std::cerr << "profile " << info.profile << ", " << info.placements << "\n"
              << info.model_type << ": dense " << info.dense_dtype << ", KV cache " << info.kv_dtype << ", experts "
              << info.experts_dtype << "\n";
}

}  // namespace

const std::vector<Option>& model_options() {
    static const std::vector<Option> options = {
        {"--onnxruntime", "PATH", "library of ONNX Runtime; default: MOLKV_ONNXRUNTIME, then the system's"},
        {"--provider", "NAME", "cpu (default), xnnpack, coreml, nnapi, openvino, qnn or cuda"},
        {"--provider-option", "NAME=VALUE", "option of the provider; can be repeated"},
        {"--require-provider", "", "fail if another provider runs some of the nodes"},
        {"--profile", "NAME", "profile of the graph; default: the best one for the provider"},
        {"--threads", "N", "threads of one operator; default: one for each physical core"},
        {"--verbose", "", "write the profile, the provider and speeds to standard error"},
        {"-v", "", "as --verbose"},
    };
    return options;
}

std::vector<Option> with_model_options(std::vector<Option> own) {
    own.insert(own.end(), model_options().begin(), model_options().end());
    return own;
}

Model open_model(const Arguments& arguments) {
    const ProviderOptions provider_options(arguments);
    const auto profile = choice(arguments, "--profile", {"cpu", "coreml", "nnapi"}, "");
    const auto provider =
        choice(arguments, "--provider", {"cpu", "xnnpack", "coreml", "nnapi", "openvino", "qnn", "cuda"}, "cpu");
    molkv_model_options options = {};
    options.size = sizeof(options);
    options.threads = static_cast<std::int32_t>(arguments.integer("--threads", 1, most_threads, 0));
    options.onnxruntime = load_onnxruntime(arguments);
    options.path = arguments.bundle().c_str();
    if (!profile.empty()) options.profile = profile.c_str();
    options.provider = provider.c_str();
    options.provider_options = provider_options.list.data();
    options.provider_option_count = provider_options.list.size();
    options.require_provider = arguments.has("--require-provider") ? 1 : 0;
    molkv_model* model = nullptr;
    const auto status = molkv_model_open(&options, &model);
    if (status == MOLKV_ERROR_REQUEST) throw UsageError(molkv_last_error());  // an option of the provider, or threads
    check(status);
    Model result(model);
    if (arguments.has("--verbose") || arguments.has("-v")) describe(model);
    return result;
}

molkv_model_info info_of(const molkv_model* model) {
    molkv_model_info info = {};
    info.size = sizeof(info);
    check(molkv_model_get_info(model, &info));
    return info;
}

WatchedSession::WatchedSession(molkv_model* model, std::int32_t batch_size, std::int32_t max_length,
                               Interrupts& interrupts)
    : interrupts_(interrupts) {
    molkv_session_options options = {};
    options.size = sizeof(options);
    options.batch_size = batch_size;
    options.max_length = max_length;
    check(molkv_session_create(model, &options, &session_));
    interrupts_.watch(session_);
}

WatchedSession::~WatchedSession() {
    interrupts_.watch(nullptr);
    molkv_session_free(session_);
}

}  // namespace tool
