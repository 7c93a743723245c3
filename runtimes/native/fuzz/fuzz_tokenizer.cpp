// Fuzz target of the tokenizer. The first byte b of an input selects ids (b is odd) or a text (b is even), of b / 2
// bytes. They follow, and after them the content of a tokenizer.json.
#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "text_stream.h"
#include "tokenizer.h"
#include "utf8.h"

namespace {

void decode(const molkv::Tokenizer& tokenizer, std::string_view bytes) {
    std::vector<std::int32_t> ids;
    for (const char byte : bytes) ids.push_back(static_cast<std::int32_t>(static_cast<signed char>(byte)));
    static_cast<void>(tokenizer.decode(ids));
    molkv::TextStream stream(tokenizer, std::span(ids).first(ids.size() / 2));
    for (const std::int32_t id : std::span(ids).last(ids.size() - ids.size() / 2)) stream.push(id);
    stream.finish();
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
    if (size < 2) return 0;
    const std::string_view input(reinterpret_cast<const char*>(data), size);
    const auto selector = static_cast<unsigned char>(input.front());
    const std::size_t length = std::min<std::size_t>(selector / 2U, size - 1);
    const std::string_view part = input.substr(1, length);
    try {
        const molkv::Tokenizer tokenizer(std::string(input.substr(1 + length)), "tokenizer.json");
        if (selector % 2 != 0) {
            decode(tokenizer, part);
        } else if (molkv::is_utf8(part)) {
            static_cast<void>(tokenizer.decode(tokenizer.encode(part, true)));
        }
    } catch (const molkv::Error&) {
        return 0;  // a broken file is refused
    }
    return 0;
}
