// The parser of arguments: --option VALUE, --option=VALUE and flags, in any order.
#include "arguments.h"

#include <algorithm>
#include <charconv>
#include <cmath>
#include <cstdlib>
#include <sstream>

#include "errors.h"

namespace tool {

namespace {

template <typename Number>
bool parse_integer(std::string_view digits, Number& value) {
    const auto* const end = digits.data() + digits.size();
    const auto result = std::from_chars(digits.data(), end, value);
    return result.ec == std::errc() && result.ptr == end;
}

[[noreturn]] void refuse(std::string_view option, std::string_view found, std::string_view expected) {
    std::ostringstream message;
    message << option << ": found '" << found << "', expected " << expected;
    throw UsageError(message.str());
}

const Option& find_option(const CommandInfo& command, std::string_view name) {
    const auto& options = command.options;
    const auto found =
        std::find_if(options.begin(), options.end(), [name](const auto& each) { return each.name == name; });
    if (found != options.end()) return *found;
    refuse("arguments", name, "an option of `molkv " + std::string(command.name) + " --help`");
}

}  // namespace

bool asks_for_help(std::string_view argument) {
    return argument == "--help" || argument == "-h";
}

std::string help_text(const CommandInfo& command) {
    constexpr std::size_t column = 34;
    std::ostringstream out;
    out << "Usage: molkv " << command.name << " BUNDLE [OPTIONS]\n\n" << command.summary << "\n\nOptions:\n";
    for (const auto& option : command.options) {
        std::string line = "  " + std::string(option.name);
        if (!option.value.empty()) line += " " + std::string(option.value);
        line.resize(std::max(column, line.size() + 2), ' ');
        out << line << option.help << "\n";
    }
    out << "  --help, -h                      show this text\n\nExamples:\n" << command.examples;
    return out.str();
}

Arguments::Arguments(const CommandInfo& command, const std::vector<std::string>& arguments) {
    for (std::size_t i = 0; i < arguments.size(); i++) {
        const std::string_view argument = arguments[i];
        if (argument.substr(0, 1) != "-" || argument == "-") {
            if (!bundle_.empty()) refuse("arguments", argument, "one bundle");
            bundle_ = argument;
            continue;
        }
        const auto equals = argument.find('=');
        const auto& option = find_option(command, argument.substr(0, equals));
        auto& values = values_[std::string(option.name)];
        if (option.value.empty()) {
            if (equals != std::string_view::npos) refuse(option.name, argument.substr(equals + 1), "no value");
            values.emplace_back();
        } else if (equals != std::string_view::npos) {
            values.emplace_back(argument.substr(equals + 1));
        } else {
            if (++i == arguments.size()) refuse(option.name, "nothing", option.value);
            values.push_back(arguments[i]);
        }
    }
    if (bundle_.empty()) refuse("arguments", "no bundle", "the folder of a bundle");
}

std::vector<std::string> Arguments::all(std::string_view option) const {
    const auto found = values_.find(option);
    return found == values_.end() ? std::vector<std::string>() : found->second;
}

std::string Arguments::text(std::string_view option, std::string_view otherwise) const {
    const auto found = values_.find(option);
    return found == values_.end() ? std::string(otherwise) : found->second.back();
}

std::int64_t Arguments::integer(std::string_view option, std::int64_t least, std::int64_t most,
                                std::int64_t otherwise) const {
    if (!has(option)) return otherwise;
    const auto digits = text(option, "");
    std::int64_t value = 0;
    if (!parse_integer(digits, value) || value < least || value > most) {
        refuse(option, digits, "an integer, " + std::to_string(least) + " to " + std::to_string(most));
    }
    return value;
}

std::uint64_t Arguments::seed(std::string_view option) const {
    const auto digits = text(option, "0");
    std::uint64_t value = 0;
    if (!parse_integer(digits, value)) refuse(option, digits, "an integer, 0 to 18446744073709551615");
    return value;
}

double Arguments::number(std::string_view option, double otherwise) const {
    if (!has(option)) return otherwise;
    const auto digits = text(option, "");
    char* end = nullptr;
    const double value = std::strtod(digits.c_str(), &end);
    if (digits.empty() || *end != '\0' || !std::isfinite(value)) refuse(option, digits, "a number");
    return value;
}

std::vector<std::vector<std::int32_t>> Arguments::id_lists(std::string_view option) const {
    std::vector<std::vector<std::int32_t>> lists;
    for (const auto& value : all(option)) {
        auto& ids = lists.emplace_back();
        std::istringstream items(value);
        for (std::string item; std::getline(items, item, ',');) {
            if (!parse_integer(item, ids.emplace_back())) refuse(option, value, "token ids such as 1,2,3");
        }
    }
    return lists;
}

}  // namespace tool
