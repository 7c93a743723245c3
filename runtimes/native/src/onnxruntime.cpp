// The library of the caller: its version, its API table, and its errors.
#include "onnxruntime.h"

#include <algorithm>
#include <array>
#include <cctype>

#if ORT_API_VERSION < 25
#error "ONNXRUNTIME_INCLUDE_DIR has headers of an ONNX Runtime before 1.25; use the headers of 1.25 or newer"
#endif

namespace molkv {

namespace {

// The oldest API table with all functions that this driver uses. Bundles need at least this version, too.
constexpr std::uint32_t oldest_api = 25;
constexpr std::array oldest_version = {1, 25, 0};

using Version = std::array<int, 3>;

// Return the first three numbers of a text such as "1.25.1" or "1.26.0-rc1".
Version parse_version(std::string_view written) {
    constexpr int most = 99999;
    Version version{};
    std::size_t place = 0;
    for (int& number : version) {
        while (place < written.size() && std::isdigit(static_cast<unsigned char>(written[place])) == 0) place++;
        for (; place < written.size() && std::isdigit(static_cast<unsigned char>(written[place])) != 0; place++) {
            number = std::min(number * 10 + (written[place] - '0'), most);
        }
    }
    return version;
}

// Return a text with each run of white space as one space, and at most 300 bytes.
std::string one_line(std::string_view message) {
    constexpr std::size_t longest = 300;
    std::string line;
    for (const char letter : message) {
        if (std::isspace(static_cast<unsigned char>(letter)) == 0) {
            line += letter;
        } else if (!line.empty() && line.back() != ' ') {
            line += ' ';
        }
    }
    line.resize(std::min(line.size(), longest));
    return line;
}

}  // namespace

OnnxRuntime::OnnxRuntime(const OrtApiBase* base) : base_(base) {
    if (base == nullptr) fail(Kind::provider, "onnxruntime: found no library (NULL), expected the OrtApiBase of one");
    version_ = base->GetVersionString();
    if (parse_version(version_) < oldest_version) {  // before GetApi, which would print an error
        fail(Kind::provider, "onnxruntime is ", version_, ", expected 1.25.0 or newer");
    }
    api_ = base->GetApi(oldest_api);
    if (api_ == nullptr) {
        fail(Kind::provider, "onnxruntime ", version_, " has no API of version ", oldest_api, ", expected one");
    }
    OrtEnv* environment = nullptr;
    check(api_->CreateEnv(ORT_LOGGING_LEVEL_FATAL, "molkv", &environment), Kind::provider, "onnxruntime cannot start");
    environment_ = {environment, api_->ReleaseEnv};
    OrtMemoryInfo* memory = nullptr;
    check(api_->CreateCpuMemoryInfo(OrtDeviceAllocator, OrtMemTypeDefault, &memory), Kind::provider,
          "onnxruntime cannot start");
    memory_ = {memory, api_->ReleaseMemoryInfo};
}

void OnnxRuntime::check_version(const std::string& oldest) const {
    if (parse_version(version_) >= parse_version(oldest)) return;
    fail(Kind::provider, "onnxruntime is ", version_, ", expected ", oldest,
         " or newer: the graph of this bundle was not tested with older versions");
}

void OnnxRuntime::check(OrtStatus* status, Kind kind, std::string_view what) const {
    if (status == nullptr) return;
    const Owned<OrtStatus> owned(status, api_->ReleaseStatus);
    fail(kind, what, ": ", one_line(api_->GetErrorMessage(status)));
}

std::vector<std::string> OnnxRuntime::available_providers() const {
    char** names = nullptr;
    int count = 0;
    check(api_->GetAvailableProviders(&names, &count), Kind::provider, "onnxruntime lists no providers");
    std::vector<std::string> found(names, names + count);
    check(api_->ReleaseAvailableProviders(names, count), Kind::provider, "onnxruntime lists no providers");
    return found;
}

Owned<OrtValue> OnnxRuntime::tensor(ONNXTensorElementDataType type, std::span<const std::int64_t> shape, void* data,
                                    std::size_t bytes, std::string_view name) const {
    OrtValue* value = nullptr;
    check(api_->CreateTensorWithDataAsOrtValue(memory(), data, bytes, shape.data(), shape.size(), type, &value),
          Kind::bundle, name);
    return {value, api_->ReleaseValue};
}

}  // namespace molkv
