// Writing saved sessions.
#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <cstdio>
#include <cstdlib>
#include <memory>
#include <system_error>
#include <vector>

#include "session_file.h"
#include "session_identity.h"

namespace molkv {

namespace {

[[noreturn]] void refuse(const std::string& path, int reason) {
    fail(Kind::request, path, ": cannot be written (", std::generic_category().message(reason), ")");
}

// A file that gets its name when it is complete. Until then it has another name in the same folder.
class PartialFile {
 public:
    explicit PartialFile(std::string path) : path_(std::move(path)) {
        const std::size_t slash = path_.rfind('/');
        const std::size_t name = slash == std::string::npos ? 0 : slash + 1;
        partial_ = path_.substr(0, name) + "." + path_.substr(name) + ".partial.XXXXXX";
        // NOLINTNEXTLINE(cppcoreguidelines-prefer-member-initializer): mkstemp needs the name
        descriptor_ = ::mkstemp(partial_.data());  // only the user can read the file (mode 0600)
        if (descriptor_ < 0) refuse(path_, errno);
    }
    PartialFile(const PartialFile&) = delete;
    PartialFile& operator=(const PartialFile&) = delete;
    ~PartialFile() {
        if (descriptor_ >= 0) ::close(descriptor_);
        if (!partial_.empty()) ::unlink(partial_.c_str());
    }

    // Append bytes, which become part of the hash.
    void append(std::span<const std::byte> bytes) {
        hash_.update(bytes);
        write_at(size_, bytes);
        size_ += static_cast<off_t>(bytes.size());
    }
    void append(std::string_view bytes) { append(std::as_bytes(std::span(bytes))); }

    // Write the hash of all bytes over the 64 digits at a position, and give the file its name.
    void finish(std::size_t digest_position) {
        const std::string digest = hash_.hex();
        write_at(static_cast<off_t>(digest_position), std::as_bytes(std::span(digest)));
        if (::fsync(descriptor_) != 0) refuse(path_, errno);
        const int descriptor = std::exchange(descriptor_, -1);
        if (::close(descriptor) != 0) refuse(path_, errno);
        if (std::rename(partial_.c_str(), path_.c_str()) != 0) refuse(path_, errno);
        partial_.clear();
    }

 private:
    void write_at(off_t position, std::span<const std::byte> bytes) const {
        while (!bytes.empty()) {
            const std::size_t most = std::size_t{1} << 30U;  // macOS refuses more than 2^31 - 1
            const ssize_t count = ::pwrite(descriptor_, bytes.data(), std::min(bytes.size(), most), position);
            if (count < 0 && errno == EINTR) continue;
            if (count <= 0) refuse(path_, count < 0 ? errno : EIO);
            bytes = bytes.subspan(static_cast<std::size_t>(count));
            position += count;
        }
    }

    std::string path_;
    std::string partial_;
    int descriptor_ = -1;
    off_t size_ = 0;
    Sha256 hash_;
};

// Return the header of the file, with its length, and with zeros as `sha256`.
std::string make_header(const Bundle& bundle, std::size_t ids, const KvCache& cache, std::int64_t length) {
    std::string json =
        text(R"({"__metadata__":{"tables":"{\"experts\": \")", bundle.table().id, R"(\"}","graph":")",
             session_graph(bundle), R"(","session_version":")", session_version, R"(","sha256":")", session_no_digest,
             R"("},")", session_ids, R"(":{"dtype":"I32","shape":[)", ids, R"(],"data_offsets":[0,)", 4 * ids, "]}");
    std::size_t end = 4 * ids;
    for (std::size_t tensor = 0; tensor < cache.tensors(); tensor++) {
        const std::size_t bytes = static_cast<std::size_t>(cache.heads(tensor) * length) * cache.row_bytes(tensor);
        json += text(",\"", session_tensor(cache.name(tensor)), R"(":{"dtype":")", session_dtype(cache.dtype()),
                     R"(","shape":[)", cache.heads(tensor), ",", length, ",", cache.head_dim(tensor),
                     R"(],"data_offsets":[)", end, ",", end + bytes, "]}");
        end += bytes;
    }
    json += "}";
    json.append((8 - json.size() % 8) % 8, ' ');
    std::string header(8, '\0');
    for (std::size_t i = 0; i < 8; i++)
        header[i] = static_cast<char>((static_cast<std::uint64_t>(json.size()) >> (8 * i)) & 0xffU);
    return header + json;
}

// Return the path without links, and check that nothing but a saved session is there.
std::string replaceable(const std::string& path) {
    const std::unique_ptr<char, void (*)(void*)> real(::realpath(path.c_str(), nullptr), std::free);
    if (real == nullptr) return path;
    try {
        const File file = File::open(real.get(), Kind::request);
        if (read_safetensors(file, Kind::request).metadata.contains("session_version")) return real.get();
    } catch (const Error&) {  // it is no saved session
    }
    fail(Kind::request, path, ": exists and is not a saved session, so it is not replaced; choose another name");
}

}  // namespace

void write_session(const std::string& path, const Bundle& bundle, std::span<const std::int32_t> ids,
                   const KvCache& cache, int sequence, std::int64_t length) {
    const std::string header = make_header(bundle, ids.size(), cache, length);
    PartialFile file(replaceable(path));
    file.append(header);
    file.append(std::as_bytes(ids));
    for (std::size_t tensor = 0; tensor < cache.tensors(); tensor++) {
        std::vector<std::byte> rows(static_cast<std::size_t>(length) * cache.row_bytes(tensor));
        for (std::int64_t head = 0; head < cache.heads(tensor); head++) {
            cache.read(tensor, sequence, head, length, rows.data());
            file.append(rows);
        }
    }
    file.finish(header.find(session_no_digest));
}

}  // namespace molkv
