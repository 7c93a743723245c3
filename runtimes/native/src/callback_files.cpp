// The descriptors that a callback opened; each File gets a duplicate.
#include "callback_files.h"

#include <fcntl.h>
#include <unistd.h>

namespace molkv {

CallbackFiles::~CallbackFiles() {
    for (const auto& [name, file] : files_) close(file.fd);
}

const molkv_file& CallbackFiles::find(const std::string& name) const {
    if (const auto known = files_.find(name); known != files_.end()) return known->second;
    molkv_file file = {-1, 0, 0};
    if (open_file_ == nullptr || open_file_(context_, name.c_str(), &file) != 0 || file.fd < 0) {
        fail(Kind::bundle, name, ": open_file found no such file");
    }
    try {
        return files_.emplace(name, file).first->second;
    } catch (...) {
        close(file.fd);
        throw;
    }
}

File CallbackFiles::open(const std::string& name) const {
    const auto& file = find(name);
    if (file.offset < 0 || file.length < 0) {
        fail(Kind::bundle, name, ": open_file gave offset ", file.offset, " and length ", file.length,
             ", expected 0 or more");
    }
    const int copy = fcntl(file.fd, F_DUPFD_CLOEXEC, 0);
    if (copy < 0) fail(Kind::bundle, name, ": the descriptor ", file.fd, " of open_file is not open");
    return {copy, static_cast<std::uint64_t>(file.offset), static_cast<std::uint64_t>(file.length), name};
}

}  // namespace molkv
