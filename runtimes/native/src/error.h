// The errors of the driver: one class with a kind, and the functions that build messages.
#pragma once

#include <locale>
#include <sstream>
#include <stdexcept>
#include <string>
#include <string_view>
#include <utility>

namespace molkv {

// The kinds of docs/bundle-format.md, "What a driver does beside the graph"; and the cancellation of a call.
enum class Kind { bundle, request, provider, memory, cancelled };

// Return a text as one line of UTF-8: control characters, line breaks, characters that change the direction of a text
// and bytes that are not UTF-8 become escape sequences such as \x1b. Printable characters stay.
std::string printable(std::string_view text);

// The exception of every failure that a caller or a bundle can cause. It never crosses the C boundary.
class Error : public std::runtime_error {
 public:
    // The message may quote names and values from files, which may contain line breaks or escape sequences of
    // terminals.
    Error(Kind kind, std::string_view message) : std::runtime_error(printable(message)), kind_(kind) {}
    [[nodiscard]] Kind kind() const { return kind_; }

 private:
    Kind kind_;
};

// Return the arguments as one text: text("found ", 3, ", expected 4").
template <typename... Parts>
std::string text(const Parts&... parts) {
    std::ostringstream stream;
    stream.imbue(std::locale::classic());
    (stream << ... << parts);
    return std::move(stream).str();
}

// Throw an Error whose message consists of the parts.
template <typename... Parts>
[[noreturn]] void fail(Kind kind, const Parts&... parts) {
    throw Error(kind, text(parts...));
}

}  // namespace molkv
