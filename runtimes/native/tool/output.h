// Standard output, and JSON.
#pragma once

#include <span>
#include <string>
#include <string_view>

namespace tool {

// Write a text to standard output at once. Throws OutputClosed if nobody reads it.
void print(std::string_view text);

// Return a text as a string of JSON, with quotes.
std::string json_string(std::string_view text);
// Return a finite number as JSON.
std::string json_number(double number);

// Return a text in which control characters are written as \xNN, for messages of one line.
std::string one_line(std::string_view text);

}  // namespace tool
