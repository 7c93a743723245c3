// A fuzz target: the JSON reader. It accepts a text or throws an Error; nothing else may happen.
#include <cstddef>
#include <cstdint>
#include <string>

#include "error.h"
#include "json.h"

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
    try {
        const molkv::Json json({reinterpret_cast<const char*>(data), size}, "input.json", molkv::Kind::bundle);
        static_cast<void>(json.root());
    } catch (const molkv::Error&) {
        return 0;
    }
    return 0;
}
