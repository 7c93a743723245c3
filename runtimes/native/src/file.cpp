// Files: opening, positioned reads and memory maps, by POSIX calls.
#include "file.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <chrono>
#include <limits>
#include <system_error>
#include <utility>

namespace molkv {

namespace {

constexpr std::size_t most_bytes_per_read = std::size_t{1} << 30U;  // macOS refuses more than 2^31 - 1

std::string reason(int number) {
    return std::generic_category().message(number);
}

// Return the size of a regular file, or close the descriptor and throw.
std::uint64_t regular_size(int descriptor, const std::string& where, Kind kind) {
    struct stat found {};
    const bool known = ::fstat(descriptor, &found) == 0;
    if (known && S_ISREG(found.st_mode)) return static_cast<std::uint64_t>(found.st_size);
    const std::string why = known ? "it is not a regular file" : reason(errno);
    ::close(descriptor);
    fail(kind, where, ": cannot be read (", why, "), expected a file");
}

}  // namespace

File::File(int descriptor, std::uint64_t offset, std::uint64_t size, std::string where)
    : descriptor_(descriptor), offset_(offset), size_(size), where_(std::move(where)) {
    const std::uint64_t whole = regular_size(descriptor, where_, Kind::bundle);
    if (offset <= whole && size <= whole - offset) return;
    ::close(descriptor);
    fail(Kind::bundle, where_, ": found the bytes from ", offset, " on with length ", size,
         ", expected a part of a file of ", whole, " bytes");
}

File File::open(const std::string& path, Kind kind) {
    // Without O_NONBLOCK, opening a pipe waits for a writer. The flag has no effect on regular files.
    const int descriptor = ::open(path.c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK);
    if (descriptor < 0) fail(kind, path, ": cannot be opened (", reason(errno), ")");
    return {descriptor, 0, regular_size(descriptor, path, kind), path};
}

File File::duplicate() const {
    const int descriptor = ::fcntl(descriptor_, F_DUPFD_CLOEXEC, 0);
    if (descriptor < 0) fail(Kind::bundle, where_, ": cannot be opened again (", reason(errno), ")");
    return {descriptor, offset_, size_, where_};
}

File::File(File&& other) noexcept
    : descriptor_(std::exchange(other.descriptor_, -1)),
      offset_(other.offset_),
      size_(other.size_),
      where_(std::move(other.where_)) {}

File& File::operator=(File&& other) noexcept {
    std::swap(descriptor_, other.descriptor_);
    std::swap(offset_, other.offset_);
    std::swap(size_, other.size_);
    std::swap(where_, other.where_);
    return *this;
}

File::~File() {
    if (descriptor_ >= 0) ::close(descriptor_);
}

void File::read(std::uint64_t offset, std::span<std::byte> into, Kind kind) const {
    if (offset > size_ || into.size() > size_ - offset) {
        fail(kind, where_, ": has ", size_, " bytes, expected ", into.size(), " bytes from byte ", offset,
             " on; is the file truncated?");
    }
    std::uint64_t place = offset_ + offset;
    while (!into.empty()) {
        const std::size_t wanted = std::min(into.size(), most_bytes_per_read);
        const ssize_t count = ::pread(descriptor_, into.data(), wanted, static_cast<off_t>(place));
        if (count < 0 && errno == EINTR) continue;
        if (count < 0) fail(kind, where_, ": cannot be read at byte ", place - offset_, " (", reason(errno), ")");
        if (count == 0) {
            fail(kind, where_, ": ends at byte ", place - offset_,
                 ", where more data was expected; was the file truncated while it was open?");
        }
        into = into.subspan(static_cast<std::size_t>(count));
        place += static_cast<std::uint64_t>(count);
    }
}

std::string File::read_all(Kind kind) const {
    if (size_ > std::numeric_limits<std::size_t>::max() / 2) fail(kind, where_, ": has ", size_, " bytes, too many");
    std::string content(static_cast<std::size_t>(size_), '\0');
    read(0, std::as_writable_bytes(std::span(content)), kind);
    return content;
}

void File::announce(std::uint64_t offset, std::size_t size) const {
    // This is only a hint, so a failure has no effect.
#if defined(__APPLE__)
    radvisory range{};
    range.ra_offset = static_cast<off_t>(offset_ + offset);
    range.ra_count = static_cast<int>(size);
    static_cast<void>(::fcntl(descriptor_, F_RDADVISE, &range));
#else
    static_cast<void>(::posix_fadvise(descriptor_, static_cast<off_t>(offset_ + offset), static_cast<off_t>(size),
                                      POSIX_FADV_WILLNEED));
#endif
}

MappedFile::MappedFile(const File& file) {
    if (file.size_ == 0) return;  // mmap refuses an empty range
    const auto page = static_cast<std::uint64_t>(::sysconf(_SC_PAGESIZE));
    const std::uint64_t before = file.offset_ % page;
    if (file.size_ > std::numeric_limits<std::size_t>::max() - page) {
        fail(Kind::bundle, file.where_, ": has ", file.size_, " bytes, more than this process can map");
    }
    length_ = static_cast<std::size_t>(before + file.size_);
    void* start =
        ::mmap(nullptr, length_, PROT_READ, MAP_PRIVATE, file.descriptor_, static_cast<off_t>(file.offset_ - before));
    if (start == MAP_FAILED) fail(Kind::bundle, file.where_, ": cannot be mapped into memory (", reason(errno), ")");
    start_ = start;
    bytes_ = std::span(static_cast<const std::byte*>(start) + before, static_cast<std::size_t>(file.size_));
}

MappedFile::MappedFile(MappedFile&& other) noexcept
    : start_(std::exchange(other.start_, nullptr)),
      length_(std::exchange(other.length_, 0)),
      bytes_(std::exchange(other.bytes_, {})) {}

MappedFile& MappedFile::operator=(MappedFile&& other) noexcept {
    std::swap(start_, other.start_);
    std::swap(length_, other.length_);
    std::swap(bytes_, other.bytes_);
    return *this;
}

MappedFile::~MappedFile() {
    if (start_ != nullptr) ::munmap(start_, length_);
}

void MappedFile::release_pages(std::size_t begin, std::size_t end) const {
    const auto page = static_cast<std::size_t>(::sysconf(_SC_PAGESIZE));
    const auto before = static_cast<std::size_t>(bytes_.data() - static_cast<const std::byte*>(start_));
    const std::size_t first = (before + begin) / page * page;
    const std::size_t last = std::min(before + end, length_) / page * page;
    if (first < last) ::madvise(static_cast<std::byte*>(start_) + first, last - first, MADV_DONTNEED);
}

PageReleaser::PageReleaser(const MappedFile& file)
    : thread_([this, &file] {
          constexpr std::chrono::milliseconds interval(30);
          std::unique_lock lock(mutex_);
          do {
              file.release_pages(0, file.bytes().size());
          } while (!ended_.wait_for(lock, interval, [this] { return has_ended_; }));
          file.release_pages(0, file.bytes().size());
      }) {}

PageReleaser::~PageReleaser() {
    {
        const std::lock_guard lock(mutex_);
        has_ended_ = true;
    }
    ended_.notify_one();
    thread_.join();
}

File Folder::open(const std::string& name) const {
    return File::open(path_ + "/" + name, Kind::bundle);
}

}  // namespace molkv
