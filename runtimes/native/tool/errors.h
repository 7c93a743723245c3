// The ways in which a command of the tool ends early. main.cpp has their exit codes.
#pragma once

#include <stdexcept>

#include "molkv.h"

namespace tool {

// Wrong arguments: exit code 2.
class UsageError : public std::runtime_error {
 public:
    using std::runtime_error::runtime_error;
};

// Any other error: exit code 1.
class ToolError : public std::runtime_error {
 public:
    using std::runtime_error::runtime_error;
};

// A signal ended the command: exit code 130.
struct Interrupted {};

// The program that reads standard output has ended: exit code 1, without a message.
struct OutputClosed {};

// Throw a ToolError if a status is an error, and Interrupted if the call was cancelled.
inline void check(molkv_status status) {
    if (status == MOLKV_OK || status == MOLKV_END) return;
    if (status == MOLKV_CANCELLED) throw Interrupted();
    throw ToolError(molkv_last_error());
}

}  // namespace tool
