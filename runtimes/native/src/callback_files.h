// The files of a bundle that a callback of the C API opens.
#pragma once

#include <map>
#include <string>

#include "file.h"
#include "molkv.h"

namespace molkv {

// Calls the callback once for each file, and keeps the descriptors. `freeze` ends the calls, so that the callback is
// not needed after the model is open.
class CallbackFiles : public FileSource {
 public:
    CallbackFiles(molkv_open_file open_file, void* context) : open_file_(open_file), context_(context) {}
    CallbackFiles(const CallbackFiles&) = delete;
    CallbackFiles& operator=(const CallbackFiles&) = delete;
    ~CallbackFiles() override;

    [[nodiscard]] File open(const std::string& name) const override;
    [[nodiscard]] const std::string& where() const override { return where_; }
    void freeze() { open_file_ = nullptr; }

 private:
    const molkv_file& find(const std::string& name) const;

    molkv_open_file open_file_;
    void* context_;
    mutable std::map<std::string, molkv_file> files_;
    std::string where_ = "the files of open_file";
};

}  // namespace molkv
