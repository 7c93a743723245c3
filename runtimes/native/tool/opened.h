// An open bundle and its session, for the commands.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "arguments.h"
#include "interrupts.h"
#include "molkv.h"

namespace tool {

// The options of each command that opens a bundle.
const std::vector<Option>& model_options();
// Return a command's own options, followed by model_options().
std::vector<Option> with_model_options(std::vector<Option> own);

struct CloseModel {
    void operator()(molkv_model* model) const { molkv_model_close(model); }
};
using Model = std::unique_ptr<molkv_model, CloseModel>;

// Load ONNX Runtime, and open the bundle of the arguments with their options. With --verbose, write facts to standard
// error.
Model open_model(const Arguments& arguments);
molkv_model_info info_of(const molkv_model* model);

// A session that signals cancel.
class WatchedSession {
 public:
    WatchedSession(molkv_model* model, std::int32_t batch_size, std::int32_t max_length, Interrupts& interrupts);
    WatchedSession(const WatchedSession&) = delete;
    WatchedSession& operator=(const WatchedSession&) = delete;
    ~WatchedSession();
    [[nodiscard]] molkv_session* get() const { return session_; }

 private:
    Interrupts& interrupts_;
    molkv_session* session_ = nullptr;
};

}  // namespace tool
