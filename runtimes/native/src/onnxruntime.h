// ONNX Runtime behind the API table of the caller: sessions, bound calls, providers.
#pragma once

#include <onnxruntime_c_api.h>

#include <cstddef>
#include <cstdint>
#include <map>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "bundle.h"

namespace molkv {

// The provider that runs the graphs, and its options.
struct Target {
    std::string provider = "cpu";
    std::map<std::string, std::string> options;  // override those of the preset
    bool required = false;                       // whether it is an error if another provider runs some of the nodes
    int threads = 0;                             // of one operator; 0: ONNX Runtime decides
};

// The driver's settings for a provider. providers.cpp has the list.
struct Preset {
    const char* name;
    const char* provider;                                   // ONNX Runtime's name
    std::vector<std::string> profiles;                      // that it can run, best first
    std::map<std::string, std::string> options;             // defaults
    std::map<std::string, std::string> config;              // session configuration entries
    std::map<std::string, std::vector<std::string>> known;  // options and their allowed values; {}: any value
    double max_abs = 0;                                     // additional error of a logit, if it is less precise
    const char* threads = "";                               // the option for the number of threads
};

// The library of the caller: its API table and one environment.
class OnnxRuntime {
 public:
    // Throws a provider error if `base` is null or the library is older than the oldest API that the driver uses.
    explicit OnnxRuntime(const OrtApiBase* base);
    OnnxRuntime(const OnnxRuntime&) = delete;
    OnnxRuntime& operator=(const OnnxRuntime&) = delete;
    ~OnnxRuntime();

    [[nodiscard]] const OrtApi& api() const { return *api_; }
    [[nodiscard]] const OrtEnv* environment() const { return environment_; }
    [[nodiscard]] const std::string& version() const { return version_; }
    // Throw a provider error if the library is older than `oldest`, such as "1.25.1" (check 11).
    void check_version(const std::string& oldest) const;
    // Return the preset with this name. Throws a provider error if it is unknown or not in this library, and names
    // those that are.
    [[nodiscard]] const Preset& preset(const std::string& name) const;
    // Throw a request error for an option or value that the provider does not know.
    static void check_options(const Preset& preset, const std::map<std::string, std::string>& options);
    // Throw an error of `kind` with ONNX Runtime's message if `status` is one; frees it.
    void check(OrtStatus* status, Kind kind, const std::string& what) const;

 private:
    const OrtApi* api_ = nullptr;
    OrtEnv* environment_ = nullptr;
    std::string version_;
};

// The nodes of a graph that one provider runs.
struct Placement {
    std::string provider;
    std::size_t nodes = 0;
    std::size_t partitions = 0;  // compiled partitions; 0 for the CPU provider
};

// A loaded graph. Threads may run it at the same time.
class GraphSession {
 public:
    // Load a graph. Its weights are used in place, from the mapped file. Makes the checks 12, 14 and 15.
    GraphSession(const OnnxRuntime& runtime, const Bundle& bundle, const GraphFile& file,
                 std::shared_ptr<const MappedFile> weights, const Target& target);
    GraphSession(const GraphSession&) = delete;
    GraphSession& operator=(const GraphSession&) = delete;
    ~GraphSession();

    [[nodiscard]] const GraphFile& file() const { return file_; }
    // Where the nodes run; empty if this library does not report it.
    [[nodiscard]] const std::vector<Placement>& placements() const { return placements_; }

 private:
    friend class BoundCall;
    const OnnxRuntime& runtime_;
    GraphFile file_;
    std::shared_ptr<const MappedFile> weights_;
    OrtSession* session_ = nullptr;
    std::vector<Placement> placements_;
};

// Inputs and outputs of a graph, bound to memory of the caller. `run` allocates nothing in this driver.
class BoundCall {
 public:
    explicit BoundCall(const GraphSession& session);
    BoundCall(BoundCall&& other) noexcept;
    BoundCall& operator=(BoundCall&& other) noexcept;
    ~BoundCall();

    // Bind memory, which must stay valid. `data` may be null if a dimension is 0. Binding a name again replaces it.
    void input(const std::string& name, DType dtype, std::span<const std::int64_t> shape, void* data);
    void output(const std::string& name, DType dtype, std::span<const std::int64_t> shape, void* data);
    // Compute the graph. Throws a bundle error if it fails.
    void run();

 private:
    const GraphSession* session_;
    OrtIoBinding* binding_ = nullptr;
};

}  // namespace molkv
