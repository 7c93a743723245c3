// Fuzz target: files of golden vectors. Texts that are accepted are also compared with logits.
#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

#include "error.h"
#include "golden.h"

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
    constexpr std::size_t vocab_size = 61;  // of the bundles of runtimes/conformance
    try {
        const molkv::Golden golden =
            molkv::parse_golden(std::string(reinterpret_cast<const char*>(data), size), "golden", vocab_size, 160);
        molkv::GoldenErrors errors(vocab_size, golden.limits(0.1));
        for (const molkv::GoldenText& text : golden.texts) {
            errors.add(text, 0, std::vector<float>(text.input_ids.size() * vocab_size, 1.0F));
        }
        static_cast<void>(errors.failure());
    } catch (const molkv::Error&) {  // a refusal is right for most inputs
    }
    return 0;
}
