// ONNX Runtime behind the API table of the caller: sessions, bound calls, providers.
#pragma once

#include <onnxruntime_c_api.h>

#include <cstddef>
#include <cstdint>
#include <map>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "bundle.h"

namespace molkv {

// An object of ONNX Runtime and the function of the API table that releases it.
template <typename T>
using Owned = std::unique_ptr<T, void (*)(T*)>;

// The provider that runs the graphs, and its options.
struct Target {
    std::string provider = "cpu";
    std::map<std::string, std::string> options;  // override those of the preset
    bool required = false;                       // whether it is an error if another provider runs some of the nodes
    int threads = 0;                             // of one operator; 0: ONNX Runtime decides
};

// The driver's settings for a provider.
struct Preset {
    const char* name;
    const char* provider;                                        // ONNX Runtime's name
    const char* appended;                                        // its name for SessionOptionsAppendExecutionProvider
    std::vector<std::string> profiles;                           // that it can run, best first
    std::map<std::string, std::vector<std::string>> known = {};  // options and their allowed values; {}: any value
    std::map<std::string, std::string> options = {};             // defaults
    std::map<std::string, std::string> config = {};              // session configuration entries
    double max_abs = 0;                                          // additional error of a logit, if it is less precise
    const char* threads = "";                                    // the option for the number of threads
    bool own_memory = false;                                     // whether it computes in memory of its own (a GPU's)
};

// Return all presets. presets.cpp has the list.
const std::vector<Preset>& presets();

// The library of the caller: its API table and one environment.
class OnnxRuntime {
 public:
    // Throws a provider error if `base` is null or the library is older than the oldest API that the driver uses.
    explicit OnnxRuntime(const OrtApiBase* base);
    OnnxRuntime(const OnnxRuntime&) = delete;
    OnnxRuntime& operator=(const OnnxRuntime&) = delete;
    ~OnnxRuntime() = default;

    [[nodiscard]] const OrtApiBase& base() const { return *base_; }
    [[nodiscard]] const OrtApi& api() const { return *api_; }
    [[nodiscard]] const OrtEnv* environment() const { return environment_.get(); }
    // The description of host memory.
    [[nodiscard]] const OrtMemoryInfo* memory() const { return memory_.get(); }
    [[nodiscard]] const std::string& version() const { return version_; }
    // Throw a provider error if the library is older than `oldest`, such as "1.25.1" (check 11).
    void check_version(const std::string& oldest) const;
    // Return the preset with this name. Throws a provider error if it is unknown or not in this library, and names
    // those that are.
    [[nodiscard]] const Preset& preset(const std::string& name) const;
    // Throw a request error for an option or value that the provider does not know.
    static void check_options(const Preset& preset, const std::map<std::string, std::string>& options);
    // Throw an error of `kind` with ONNX Runtime's message if `status` is one; frees it.
    void check(OrtStatus* status, Kind kind, std::string_view what) const;
    // Return a tensor that uses memory of the caller. `data` may be null if a dimension is 0.
    [[nodiscard]] Owned<OrtValue> tensor(ONNXTensorElementDataType type, std::span<const std::int64_t> shape,
                                         void* data, std::size_t bytes, std::string_view name) const;

 private:
    [[nodiscard]] std::vector<std::string> available_providers() const;

    const OrtApiBase* base_;
    const OrtApi* api_ = nullptr;
    std::string version_;
    Owned<OrtEnv> environment_{nullptr, nullptr};
    Owned<OrtMemoryInfo> memory_{nullptr, nullptr};
};

// Return the options of a session: threads, the provider with its options, and the entries of its preset. Throws a
// request error for impossible options, and a provider error if the provider refuses them.
Owned<OrtSessionOptions> session_options(const OnnxRuntime& runtime, const Target& target);

// Return ONNX Runtime's number of a dtype.
ONNXTensorElementDataType tensor_type(DType dtype);

// The nodes of a graph that one provider runs.
struct Placement {
    std::string provider;
    std::size_t nodes = 0;
    std::size_t partitions = 0;  // compiled partitions; 0 for the CPU provider
};

// A loaded graph. Threads may run it at the same time.
class GraphSession {
 public:
    // Load a graph. Its weights are used in place, from the mapped file `weights`; of a graph in ORT format, this is
    // the file of the graph. Makes the checks 12, 14 (not in ORT format) and 15. Throws a bundle error, or a provider
    // error if ONNX Runtime refuses the graph.
    GraphSession(const OnnxRuntime& runtime, const Bundle& bundle, const GraphFile& file,
                 std::shared_ptr<const MappedFile> weights, const Target& target);
    GraphSession(const GraphSession&) = delete;
    GraphSession& operator=(const GraphSession&) = delete;
    ~GraphSession() = default;

    [[nodiscard]] const GraphFile& file() const { return file_; }
    // Where the nodes run, the provider with the most nodes first. Empty for a graph in ORT format: ONNX Runtime does
    // not tell it, and minimal builds have no function for it.
    [[nodiscard]] const std::vector<Placement>& placements() const { return placements_; }

 private:
    friend class BoundCall;
    const OnnxRuntime& runtime_;
    GraphFile file_;
    std::shared_ptr<const MappedFile> weights_;
    bool own_memory_;
    Owned<OrtSession> session_{nullptr, nullptr};
    std::vector<Placement> placements_;
};

// Inputs and outputs of a graph, bound to memory of the caller. `run` allocates nothing in this driver.
class BoundCall {
 public:
    explicit BoundCall(const GraphSession& session);

    // Bind memory, which must stay valid. `data` may be null if a dimension is 0. Binding a name again replaces it.
    void input(const std::string& name, DType dtype, std::span<const std::int64_t> shape, void* data);
    void output(const std::string& name, DType dtype, std::span<const std::int64_t> shape, void* data);
    // Compute the graph. Throws a bundle error if it fails.
    void run();

 private:
    [[nodiscard]] Owned<OrtValue> tensor(const std::string& name, DType dtype, std::span<const std::int64_t> shape,
                                         void* data) const;
    const GraphSession* session_;
    Owned<OrtIoBinding> binding_{nullptr, nullptr};
    // Inputs that ONNX Runtime copies to the provider's own memory when they are bound, so each run binds them again.
    std::map<std::string, Owned<OrtValue>> copied_;
};

}  // namespace molkv
