// Text streams and stop strings: hand-checked pieces.
#include <string>
#include <vector>

#include "check.h"
#include "text_stream.h"

using molkv::Kind;
using molkv::StopStrings;
using molkv::TextStream;
using molkv::Tokenizer;
namespace test = molkv::test;

namespace {

using Ids = std::vector<std::int32_t>;

// U+00E4 is the bytes C3 A4, whose characters are U+00C3 and U+00A4. The token 4 is special.
constexpr const char* byte_level = R"({"decoder": {"type": "ByteLevel", "add_prefix_space": false},
    "added_tokens": [{"id": 4, "content": "<s>", "special": true, "normalized": false, "single_word": false,
                      "lstrip": false, "rstrip": false}],
    "model": {"vocab": {"a": 0, "Ġb": 1, "Ã": 2, "¤": 3}, "merges": []}})";
constexpr const char* fallback = R"({"decoder": {"type": "Sequence", "decoders": [
        {"type": "Replace", "pattern": {"String": "▁"}, "content": " "}, {"type": "ByteFallback"}, {"type": "Fuse"},
        {"type": "Strip", "content": " ", "start": 1, "stop": 0}]},
    "model": {"vocab": {"a": 0, "▁b": 1, "<0xC3>": 2, "<0xA4>": 3, "▁": 4}, "merges": []}})";

// Return the pieces of a stream, each with "|" after it, and the rest.
std::string pieces(const char* content, const Ids& prompt, const Ids& ids) {
    const Tokenizer tokenizer(content, "tokenizer.json");
    TextStream stream(tokenizer, prompt);
    std::string joined;
    for (const std::int32_t id : ids) joined.append(stream.push(id)).append("|");
    return joined.append(stream.finish());
}

void test_byte_level() {
    test::equal(pieces(byte_level, {}, {0, 1, 2, 3, 0}), "a| b||\u00e4|a|", "a character of two tokens");
    test::equal(pieces(byte_level, {0}, {4, 9, -1, 2, 4, 3}), "|||||\u00e4|", "ids without text");
    test::equal(pieces(byte_level, {0}, {2, 2, 0, 2}), "||\uFFFD\uFFFDa||\uFFFD", "bytes that are no character");
    // The first id completes a character of the prompt, so it is decoded alone.
    test::equal(pieces(byte_level, {2}, {3, 0}), "|\uFFFDa|", "a prompt that ends in a character");
}

void test_fallback() {
    test::equal(pieces(fallback, {}, {1, 1, 2, 3, 0}), "b| b|||\u00e4a|", "the space at the start of a text");
    test::equal(pieces(fallback, {0}, {1, 2, 3}), " b|||\u00e4", "a text after a prompt");
    test::equal(pieces(fallback, {}, {4, 4, 4, 0}), "| | |a|", "spaces at the start of a text");
    test::equal(pieces(fallback, {0}, {2, 3, 2, 0}), "|||\uFFFD\uFFFD\uFFFDa|", "a wrong run of bytes");
}

void test_time_of_an_id() {
    // Each of these texts takes minutes if the time of an id grows with the length of the text.
    constexpr std::size_t length = 200'000;
    const Ids prompt(length, 0);
    test::equal(pieces(byte_level, prompt, Ids(length, 0)).size(), 2 * length, "a long text");
    test::equal(pieces(byte_level, prompt, Ids(length, 2)).size(), 4 * length, "a long text of wrong bytes");
    test::equal(pieces(fallback, {}, Ids(length, 4)).size(), 2 * length - 1, "a long text of spaces");
    test::equal(pieces(fallback, prompt, Ids(length, 2)).size(), 4 * length, "a long run of bytes");
}

std::string stopped(const std::vector<std::string>& strings, const std::vector<std::string>& parts) {
    StopStrings stop(strings);
    std::string joined;
    for (const std::string& part : parts) joined += stop.push(part) + "|";
    return joined + stop.finish() + (stop.found() ? "!" : "");
}

void test_stop_strings() {
    test::equal(stopped({}, {"ab", "c"}), "ab|c|", "no stop strings");
    test::equal(stopped({"cd"}, {"abc", "d", "e"}), "ab|||!", "a stop string in two pieces");
    test::equal(stopped({"cd"}, {"abc", "ce"}), "ab|cce|", "a beginning that is no stop string");
    test::equal(stopped({"cd"}, {"abc"}), "ab|c", "a beginning at the end");
    test::equal(stopped({"bc", "abcd", "c"}, {"xabcd"}), "xa|!", "the first that is complete, the longest of equals");
    test::equal(stopped({"aab"}, {"aaab"}), "a|!", "a string that overlaps itself");
}

void test_refused_stop_strings() {
    const auto refused = [](std::vector<std::string> strings, const char* part) {
        test::refused([&] { const StopStrings stop(std::move(strings)); }, Kind::request, part, part);
    };
    refused(std::vector<std::string>(17, "a"), "17 strings");
    refused({""}, "0 characters");
    refused({std::string(1001, 'a')}, "1001 characters");
    refused({"\xFF"}, "UTF-8");
    std::string longest;
    for (int count = 0; count < 1000; count++) longest += "\u00e4";
    const StopStrings stop({longest});
    test::equal(stop.strings().size(), 1U, "a string of 1,000 characters");
}

}  // namespace

int main() {
    test_byte_level();
    test_fallback();
    test_time_of_an_id();
    test_stop_strings();
    test_refused_stop_strings();
    return test::finish();
}
