// The arguments of a command: options with names, and the path of a bundle.
#pragma once

#include <cstdint>
#include <map>
#include <string>
#include <string_view>
#include <vector>

namespace tool {

struct Option {
    std::string_view name;   // such as "--prompt"
    std::string_view value;  // what its value is called in the help text; "": the option has no value
    std::string_view help;
};

// What a command is called, takes and does.
struct CommandInfo {
    std::string_view name;
    std::string_view summary;   // one line
    std::string_view examples;  // lines
    std::vector<Option> options;
};

// Return whether an argument asks for the help text.
bool asks_for_help(std::string_view argument);
// Return the text of `molkv COMMAND --help`.
std::string help_text(const CommandInfo& command);

// Parsed arguments. Each function throws a UsageError that names the option if a value is impossible.
class Arguments {
 public:
    Arguments(const CommandInfo& command, const std::vector<std::string>& arguments);

    [[nodiscard]] const std::string& bundle() const { return bundle_; }
    [[nodiscard]] bool has(std::string_view option) const { return values_.contains(option); }
    // The values of an option that can be repeated, in their order.
    [[nodiscard]] std::vector<std::string> all(std::string_view option) const;
    // The last value of an option, or the default.
    [[nodiscard]] std::string text(std::string_view option, std::string_view otherwise) const;
    [[nodiscard]] std::int64_t integer(std::string_view option, std::int64_t least, std::int64_t most,
                                       std::int64_t otherwise) const;
    [[nodiscard]] std::uint64_t seed(std::string_view option) const;
    [[nodiscard]] double number(std::string_view option, double otherwise) const;
    // Lists of token ids such as "1,2,3", one for each value of the option.
    [[nodiscard]] std::vector<std::vector<std::int32_t>> id_lists(std::string_view option) const;

 private:
    std::map<std::string, std::vector<std::string>, std::less<>> values_;
    std::string bundle_;
};

}  // namespace tool
