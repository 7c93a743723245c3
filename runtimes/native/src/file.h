// Files of a bundle: open descriptors with positioned reads, so that threads can share them.
#pragma once

#include <condition_variable>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <mutex>
#include <span>
#include <string>
#include <thread>
#include <utility>

#include "error.h"

namespace molkv {

// A regular file, or a part of one. Moves, does not copy; closes its descriptor.
class File {
 public:
    // Take over a descriptor. `where` names the file in messages. Throws a bundle error if the descriptor is not a
    // regular file that contains the part.
    File(int descriptor, std::uint64_t offset, std::uint64_t size, std::string where);
    // Open a whole file by its path. `kind` is the kind of the error if it cannot be opened.
    static File open(const std::string& path, Kind kind);
    File(File&& other) noexcept;
    File& operator=(File&& other) noexcept;
    ~File();
    // Return the same open file with a descriptor of its own, also if its name now belongs to another file.
    [[nodiscard]] File duplicate() const;

    [[nodiscard]] std::uint64_t size() const { return size_; }
    [[nodiscard]] const std::string& where() const { return where_; }
    // Fill `into` with the bytes from `offset` on. Throws an error of `kind` if there are fewer, or if reading fails.
    void read(std::uint64_t offset, std::span<std::byte> into, Kind kind = Kind::bundle) const;
    // Tell the operating system that these bytes will be read next (at most 2^31 - 1), so that it reads them in one
    // request, at the same time as other announced bytes.
    void announce(std::uint64_t offset, std::size_t size) const;
    // Return the whole content. Use it for files whose size was checked.
    [[nodiscard]] std::string read_all(Kind kind = Kind::bundle) const;

 private:
    friend class MappedFile;
    int descriptor_;
    std::uint64_t offset_;
    std::uint64_t size_;
    std::string where_;
};

// The content of a file, mapped into memory for reading. The offset of the file does not have to be a multiple of the
// page size.
class MappedFile {
 public:
    explicit MappedFile(const File& file);
    MappedFile(MappedFile&& other) noexcept;
    MappedFile& operator=(MappedFile&& other) noexcept;
    ~MappedFile();

    [[nodiscard]] std::span<const std::byte> bytes() const { return bytes_; }
    // Let the operating system take back the pages between two places, in bytes. They are read again when they are
    // used.
    void release_pages(std::size_t begin, std::size_t end) const;

 private:
    void* start_ = nullptr;
    std::size_t length_ = 0;
    std::span<const std::byte> bytes_;
};

// A thread that releases the pages of a mapped file again and again, while other code reads the file once. So the
// memory of the process does not grow by the size of the file.
class PageReleaser {
 public:
    explicit PageReleaser(const MappedFile& file);
    PageReleaser(const PageReleaser&) = delete;
    PageReleaser& operator=(const PageReleaser&) = delete;
    ~PageReleaser();

 private:
    std::mutex mutex_;
    std::condition_variable ended_;
    bool has_ended_ = false;
    std::thread thread_;
};

// The place where the files of a bundle are: a folder, or the callback of the C API.
class FileSource {
 public:
    virtual ~FileSource() = default;
    // Open a file by its plain name. Throws a bundle error if it does not exist or is not a regular file.
    [[nodiscard]] virtual File open(const std::string& name) const = 0;
    // The name of the place, for messages.
    [[nodiscard]] virtual const std::string& where() const = 0;
};

// The files of a folder.
class Folder : public FileSource {
 public:
    explicit Folder(std::string path) : path_(std::move(path)) {}
    [[nodiscard]] File open(const std::string& name) const override;
    [[nodiscard]] const std::string& where() const override { return path_; }

 private:
    std::string path_;
};

}  // namespace molkv
