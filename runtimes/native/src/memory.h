// The RAM that is available. The operating system provides memory when a process first writes to it, so a request for
// too much memory succeeds, and the process is killed later.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>

namespace molkv {

// Return the bytes of RAM that are available without swapping, on the machine and in the control group. Only Linux and
// Android report these numbers; on other systems the result is the largest number.
// root: the folder that holds the system's `proc` and `sys`.
std::uint64_t available_memory(const std::string& root = "");

// Throw a memory error if fewer than `needed` bytes of RAM are available. `what` says which data needs them.
void check_memory(std::uint64_t needed, std::string_view what);

}  // namespace molkv
