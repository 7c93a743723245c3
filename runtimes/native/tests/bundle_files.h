// Files of the tests of bundles: temporary folders, contents, and the hash of an edited manifest.
#pragma once

#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <string>
#include <string_view>

#include "digest.h"
#include "error.h"

namespace molkv::test {

// A new empty folder, which the destructor removes.
class TemporaryFolder {
 public:
    TemporaryFolder() {
        std::string name = (std::filesystem::temp_directory_path() / "molkv-test-XXXXXX").string();
        if (::mkdtemp(name.data()) == nullptr) fail(Kind::request, name, ": cannot make a temporary folder");
        path_ = name;
    }
    TemporaryFolder(const TemporaryFolder&) = delete;
    TemporaryFolder& operator=(const TemporaryFolder&) = delete;
    ~TemporaryFolder() {
        std::error_code ignored;
        std::filesystem::remove_all(path_, ignored);
    }
    [[nodiscard]] const std::filesystem::path& path() const { return path_; }

 private:
    std::filesystem::path path_;
};

inline std::string read_file(const std::filesystem::path& path) {
    std::ifstream file(path, std::ios::binary);
    if (!file) fail(Kind::request, path.string(), ": cannot be read");
    return {std::istreambuf_iterator<char>(file), {}};
}

inline void write_file(const std::filesystem::path& path, std::string_view content) {
    std::ofstream(path, std::ios::binary | std::ios::trunc)
        .write(content.data(), static_cast<std::streamsize>(content.size()));
}

// Return a manifest with the right hash in its field `sha256`, the last one in a file of the exporter.
inline std::string sealed(std::string manifest) {
    const std::string_view key = "\n \"sha256\": \"";
    const std::size_t place = manifest.rfind(key) + key.size();
    manifest.replace(place, 64, std::string(64, '0'));
    Sha256 digest;
    digest.update(manifest);
    return manifest.replace(place, 64, digest.hex());
}

}  // namespace molkv::test
