// The commands of the tool.
#pragma once

#include "arguments.h"
#include "interrupts.h"

namespace tool {

struct Command {
    CommandInfo info;
    int (*run)(const Arguments& arguments, Interrupts& interrupts) = nullptr;  // returns an exit code
};

Command run_command();
Command selftest_command();
Command bench_command();
Command inspect_command();
Command tokenize_command();

}  // namespace tool
