// The command-line tool `molkv`. Exit codes: 0 done, 1 an error, 2 wrong arguments, 130 interrupted.
#include <algorithm>
#include <csignal>
#include <exception>
#include <iostream>

#include "commands.h"
#include "errors.h"
#include "interrupts.h"
#include "output.h"

namespace {

constexpr int failed = 1;
constexpr int wrong_arguments = 2;
constexpr int interrupted = 130;

std::vector<tool::Command> commands() {
    return {tool::run_command(), tool::selftest_command(), tool::bench_command(), tool::inspect_command(),
            tool::tokenize_command()};
}

std::string help() {
    std::string text =
        "Usage: molkv COMMAND BUNDLE [OPTIONS]\n\nRun lookup-expert language models with ONNX Runtime.\n\nCommands:\n";
    for (const auto& command : commands()) {
        std::string line = "  " + std::string(command.info.name);
        line.resize(13, ' ');
        text += line + std::string(command.info.summary) + "\n";
    }
    return text +
           "\n`molkv COMMAND --help` explains the options, with examples. `molkv --version` prints the version.\n";
}

int run(const std::vector<std::string>& arguments, tool::Interrupts& interrupts) {
    const bool wants_help = std::any_of(arguments.begin(), arguments.end(), tool::asks_for_help);
    if (arguments.empty() || tool::asks_for_help(arguments[0])) {
        tool::print(help());
        return arguments.empty() ? wrong_arguments : 0;
    }
    if (arguments[0] == "--version") {
        tool::print(std::string("molkv ") + molkv_version() + "\n");
        return 0;
    }
    for (const auto& command : commands()) {
        if (command.info.name != arguments[0]) continue;
        if (wants_help) {
            tool::print(tool::help_text(command.info));
            return 0;
        }
        return command.run(tool::Arguments(command.info, {arguments.begin() + 1, arguments.end()}), interrupts);
    }
    throw tool::UsageError("found the command '" + arguments[0] + "', expected one of `molkv --help`");
}

int report(std::string_view message, int code) {
    std::cerr << "error: " << tool::one_line(message) << "\n";
    return code;
}

}  // namespace

int main(int count, char** arguments) {
    static_cast<void>(std::signal(SIGPIPE, SIG_IGN));  // a failed write says that the reader has ended
    try {
        tool::Interrupts interrupts;
        return run({arguments + 1, arguments + count}, interrupts);
    } catch (const tool::UsageError& error) {
        return report(error.what(), wrong_arguments);
    } catch (const tool::Interrupted&) {
        return interrupted;
    } catch (const tool::OutputClosed&) {
        return failed;
    } catch (const std::exception& error) {
        return report(error.what(), failed);
    }
}
