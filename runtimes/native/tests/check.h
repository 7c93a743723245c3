// The checks of the test programs: each failure prints the place and the values; `finish` returns the exit code.
#pragma once

#include <functional>
#include <iostream>
#include <string_view>

#include "error.h"

namespace molkv::test {

inline int failures = 0;  // NOLINT(cppcoreguidelines-avoid-non-const-global-variables): of the whole program

template <typename A, typename B>
void equal(const A& found, const B& expected, std::string_view what) {
    if (found == expected) return;
    failures++;
    std::cerr << "FAIL " << what << ": found " << found << ", expected " << expected << "\n";
}

inline void that(bool truth, std::string_view what) {
    if (truth) return;
    failures++;
    std::cerr << "FAIL " << what << "\n";
}

// Check that a call throws an Error of a kind whose message contains a text.
inline void refused(const std::function<void()>& call, Kind kind, std::string_view part, std::string_view what) {
    try {
        call();
    } catch (const Error& error) {
        that(error.kind() == kind, text(what, ": wrong kind of error: ", error.what()));
        that(std::string_view(error.what()).find(part) != std::string_view::npos,
             text(what, ": the message lacks \"", part, "\": ", error.what()));
        return;
    }
    that(false, text(what, ": found no error"));
}

inline int finish() {
    std::cout << (failures == 0 ? "passed" : "failed") << "\n";
    return failures == 0 ? 0 : 1;
}

}  // namespace molkv::test
