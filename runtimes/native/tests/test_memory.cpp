// Checks the available RAM with files such as those of Linux.
#include <limits>

#include "bundle_files.h"
#include "check.h"
#include "memory.h"

namespace test = molkv::test;

int main() {
    const test::TemporaryFolder folder;
    const std::string root = folder.path().string();
    const auto write = [&](const std::string& name, const std::string& content) {
        const std::filesystem::path path = folder.path() / name;
        std::filesystem::create_directories(path.parent_path());
        test::write_file(path, content);
    };
    constexpr auto no_limit = std::numeric_limits<std::uint64_t>::max();
    test::equal(molkv::available_memory(root), no_limit, "a system without these files");

    write("proc/meminfo", "MemTotal:       16384 kB\nMemFree:  10 kB\nMemAvailable:    8000 kB\nBuffers: 1 kB\n");
    test::equal(molkv::available_memory(root), 8000U * 1024U, "MemAvailable");

    write("sys/fs/cgroup/memory.max", "max\n");
    write("sys/fs/cgroup/memory.current", "5000\n");
    write("sys/fs/cgroup/memory.stat", "anon 4000\nfile 900\nactive_file 300\ninactive_file 400\n");
    test::equal(molkv::available_memory(root), 8000U * 1024U, "a control group without a limit");
    write("sys/fs/cgroup/memory.max", "6000\n");
    test::equal(molkv::available_memory(root), 6000U - 5000U + 300U + 400U, "the limit of a control group");

    write("sys/fs/cgroup/memory/memory.limit_in_bytes", "3000\n");
    write("sys/fs/cgroup/memory/memory.usage_in_bytes", "2900\n");
    write("sys/fs/cgroup/memory/memory.stat", "active_file 7\ntotal_active_file 20\ntotal_inactive_file 30\n");
    test::equal(molkv::available_memory(root), 3000U - 2900U + 20U + 30U, "a control group of version 1");
    write("sys/fs/cgroup/memory/memory.usage_in_bytes", "9000\n");
    test::equal(molkv::available_memory(root), 0U, "a control group above its limit");

    test::that(molkv::available_memory() > 0, "this machine has memory");
    molkv::check_memory(1, "tests");
    if (molkv::available_memory() < no_limit) {
        test::refused([] { molkv::check_memory(no_limit / 2, "two sequences of 8 tokens"); }, molkv::Kind::memory,
                      "two sequences of 8 tokens need 8796093022207 MiB of RAM", "too much memory");
    }
    return test::finish();
}
