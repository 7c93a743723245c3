// The available RAM: /proc/meminfo, and the limits of control groups of version 2 and version 1.
#include "memory.h"

#include <algorithm>
#include <array>
#include <fstream>
#include <limits>
#include <optional>

#include "error.h"

namespace molkv {

namespace {

constexpr std::uint64_t no_limit = std::numeric_limits<std::uint64_t>::max();

// The files of a control group. The usage includes the page cache, which can be freed; the statistics have its size.
struct Group {
    const char* limit;
    const char* usage;
    const char* statistics;
    const char* prefix;  // of keys in the statistics
};

constexpr std::array groups = {
    Group{"memory.max", "memory.current", "memory.stat", ""},
    Group{"memory/memory.limit_in_bytes", "memory/memory.usage_in_bytes", "memory/memory.stat", "total_"},
};

// Return the number in a file; nothing if there is none, such as "max".
std::optional<std::uint64_t> number_in(const std::string& path) {
    std::ifstream file(path);
    std::uint64_t number = 0;
    if (!(file >> number)) return std::nullopt;
    return number;
}

// Return the number after a key, in a file whose lines begin with a key and a number.
std::optional<std::uint64_t> number_after(const std::string& path, const std::string& key) {
    std::ifstream file(path);
    for (std::string word; file >> word;) {
        std::uint64_t number = 0;
        if (word == key && file >> number) return number;
        file.ignore(std::numeric_limits<std::streamsize>::max(), '\n');
    }
    return std::nullopt;
}

std::uint64_t available_in(const Group& group, const std::string& folder) {
    const auto limit = number_in(folder + group.limit);
    const auto usage = number_in(folder + group.usage);
    const std::string prefix = group.prefix;
    const auto active = number_after(folder + group.statistics, prefix + "active_file");
    const auto inactive = number_after(folder + group.statistics, prefix + "inactive_file");
    if (!limit || !usage || !active || !inactive) return no_limit;
    // Version 1 writes a number near 2^63 if there is no limit, so no sum here overflows.
    const std::uint64_t free = *limit + *active + *inactive;
    return free > *usage ? free - *usage : 0;
}

}  // namespace

std::uint64_t available_memory(const std::string& root) {
    std::uint64_t found = no_limit;
    if (const auto kilobytes = number_after(root + "/proc/meminfo", "MemAvailable:")) found = *kilobytes * 1024;
    for (const Group& group : groups) found = std::min(found, available_in(group, root + "/sys/fs/cgroup/"));
    return found;
}

void check_memory(std::uint64_t needed, std::string_view what) {
    const std::uint64_t available = available_memory();
    if (needed <= available) return;
    constexpr std::uint64_t mebibyte = 1U << 20U;
    fail(Kind::memory, what, " need ", needed / mebibyte, " MiB of RAM, ", available / mebibyte,
         " MiB are free; ask for fewer or shorter sequences");
}

}  // namespace molkv
