// Saved sessions (docs/bundle-format.md, "The saved file").
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include "bundle.h"
#include "file.h"
#include "kv_cache.h"
#include "safetensors.h"

namespace molkv {

// A saved session that belongs to a bundle and is undamaged. Every error is a request error.
class SessionFile {
 public:
    // Open a file, and make the checks 1 to 6 of a reader.
    SessionFile(const std::string& path, const Bundle& bundle);

    // All token ids of the text.
    [[nodiscard]] const std::vector<std::int32_t>& ids() const { return ids_; }
    // The number of first tokens whose keys and values are in the file.
    [[nodiscard]] std::int64_t length() const { return length_; }
    // Read the KV cache into that of an empty sequence, and check its numbers (check 7). If it fails, the cache of the
    // sequence is zeros.
    void read_into(KvCache& cache, int sequence) const;

 private:
    void check_version() const;
    void check_hash() const;
    void check_owner(const Bundle& bundle) const;
    void check_messages() const;
    void read_ids(const Bundle& bundle);
    void check_cache(const Bundle& bundle);
    void read_tensor(const StoredTensor& tensor, KvCache& cache, std::size_t number, int sequence) const;
    [[nodiscard]] std::string metadata(const std::string& name) const;

    File file_;
    SafetensorsHeader header_;
    std::vector<std::int32_t> ids_;
    std::int64_t length_ = 0;
};

// Write a session to a file that only the user can read. The file has its name when it is complete. Only a saved
// session of this name is replaced. `ids`: all token ids of the text; the cache has the first `length` of them.
// Throws a request error if the file cannot be written.
void write_session(const std::string& path, const Bundle& bundle, std::span<const std::int32_t> ids,
                   const KvCache& cache, int sequence, std::int64_t length);

}  // namespace molkv
