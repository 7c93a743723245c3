// The C API for test programs: handles that free themselves, status codes as exceptions, and ONNX Runtime by its path.
#pragma once

#include <dlfcn.h>

#include <cstdint>
#include <memory>
#include <stdexcept>
#include <string>
#include <vector>

#include "molkv.h"

namespace molkv::test {

// A status that is an error, and its description.
class Failure : public std::runtime_error {
 public:
    explicit Failure(molkv_status status) : std::runtime_error(molkv_last_error()), status_(status) {}
    [[nodiscard]] molkv_status status() const { return status_; }

 private:
    molkv_status status_;
};

inline void check(molkv_status status) {
    if (status != MOLKV_OK) throw Failure(status);
}

struct Free {
    void operator()(molkv_model* model) const { molkv_model_close(model); }
    void operator()(molkv_session* session) const { molkv_session_free(session); }
    void operator()(molkv_generation* generation) const { molkv_generation_free(generation); }
};
using ModelHandle = std::unique_ptr<molkv_model, Free>;
using SessionHandle = std::unique_ptr<molkv_session, Free>;
using GenerationHandle = std::unique_ptr<molkv_generation, Free>;

// Load a library of ONNX Runtime, which stays loaded, and return the result of its OrtGetApiBase().
inline const OrtApiBase* load_onnxruntime(const char* path) {
    void* const library = dlopen(path, RTLD_NOW | RTLD_LOCAL);
    if (library == nullptr) throw std::runtime_error(dlerror());
    using Function = const OrtApiBase* (*)();
    const auto function = reinterpret_cast<Function>(dlsym(library, "OrtGetApiBase"));
    if (function == nullptr) throw std::runtime_error(dlerror());
    return function();
}

inline ModelHandle open_model(const OrtApiBase* onnxruntime, const std::string& folder) {
    molkv_model_options options = {};
    options.size = sizeof(options);
    options.onnxruntime = onnxruntime;
    options.path = folder.c_str();
    options.threads = 1;
    molkv_model* model = nullptr;
    check(molkv_model_open(&options, &model));
    return ModelHandle(model);
}

inline molkv_model_info info_of(const molkv_model* model) {
    molkv_model_info info = {};
    info.size = sizeof(info);
    check(molkv_model_get_info(model, &info));
    return info;
}

inline SessionHandle create_session(molkv_model* model, std::int32_t batch_size = 1, std::int32_t max_length = 0) {
    molkv_session_options options = {};
    options.size = sizeof(options);
    options.batch_size = batch_size;
    options.max_length = max_length;
    molkv_session* session = nullptr;
    check(molkv_session_create(model, &options, &session));
    return SessionHandle(session);
}

inline std::vector<std::int32_t> ids_of(const molkv_session* session, std::int32_t sequence = 0) {
    const std::int32_t* ids = nullptr;
    std::size_t count = 0;
    check(molkv_session_ids(session, sequence, &ids, &count));
    return {ids, ids + count};
}

inline molkv_prompt prompt_of(const std::vector<std::int32_t>& ids) {
    return {nullptr, 0, ids.data(), ids.size()};
}

inline GenerationHandle generate(molkv_session* session, const std::vector<molkv_prompt>& prompts,
                                 const molkv_generation_options& options) {
    molkv_generation* generation = nullptr;
    check(molkv_generate(session, prompts.data(), prompts.size(), &options, &generation));
    return GenerationHandle(generation);
}

// Fill `token`; return false after the last token.
inline bool next_token(molkv_generation* generation, molkv_token& token) {
    token = {};
    token.size = sizeof(token);
    const auto status = molkv_generation_next(generation, &token);
    if (status != MOLKV_END) check(status);
    return status != MOLKV_END;
}

}  // namespace molkv::test
