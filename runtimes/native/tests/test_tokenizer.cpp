// The tokenizer: hand-checked ids and texts, refusals, and the bundles of runtimes/conformance (argument 1).
#include <fstream>
#include <iterator>
#include <string>
#include <utility>
#include <vector>

#include "check.h"
#include "tokenizer.h"
#include "unicode.h"
#include "word_pattern.h"

using molkv::Kind;
using molkv::Tokenizer;
using molkv::WordPattern;
namespace test = molkv::test;

namespace {

using Ids = std::vector<std::int32_t>;

constexpr const char* byte_level = R"({"type": "ByteLevel", "add_prefix_space": false, "use_regex": true})";
constexpr const char* byte_model =
    R"({"type": "BPE", "vocab": {"a": 0, "b": 1, "ab": 2, "Ġ": 3, "Ġab": 4, "Ã": 5, "¤": 6, "<s>": 7},
        "merges": ["a b", ["Ġ", "ab"]]})";
constexpr const char* fallback_model =
    R"({"type": "BPE", "unk_token": "<unk>", "fuse_unk": true, "byte_fallback": true, "merges": [["▁", "a"]],
        "vocab": {"<unk>": 0, "<0xC3>": 1, "<0xA4>": 2, "▁": 3, "a": 4, "▁a": 5, "<0x0A>": 6}})";
constexpr const char* fallback_decoder =
    R"({"type": "Sequence", "decoders": [{"type": "Replace", "pattern": {"String": "▁"}, "content": " "},
        {"type": "ByteFallback"}, {"type": "Fuse"}, {"type": "Strip", "content": " ", "start": 1, "stop": 0}]})";

std::string added(const char* content, const char* true_flags) {
    std::string token = molkv::text(R"({"id": 0, "content": ")", content, "\"");
    for (const std::string flag : {"special", "normalized", "single_word", "lstrip", "rstrip"}) {
        const bool is_true = std::string(true_flags).find(flag) != std::string::npos;
        token += molkv::text(", \"", flag, "\": ", is_true ? "true" : "false");
    }
    return token + "}";
}

std::string field(const char* name, const std::string& value) {
    return molkv::text("\"", name, "\": ", value, ", ");
}

Tokenizer make(const std::string& fields, const char* model) {
    return {molkv::text("{", fields, "\"model\": ", model, "}"), "tokenizer.json"};
}

std::string join(const Ids& ids) {
    std::string joined;
    for (const std::int32_t id : ids) joined += molkv::text(joined.empty() ? "" : " ", id);
    return joined;
}

void encodes(const Tokenizer& tokenizer, std::string_view text, std::string_view ids) {
    test::equal(join(tokenizer.encode(text, true)), ids, molkv::text("the ids of \"", text, "\""));
}

void decodes(const Tokenizer& tokenizer, const Ids& ids, std::string_view text) {
    test::equal(tokenizer.decode(ids), text, molkv::text("the text of ", join(ids)));
}

void test_byte_level() {
    const auto base = field("pre_tokenizer", byte_level) + field("decoder", byte_level);
    const Tokenizer tokenizer = make(base + field("added_tokens", "[" + added("<s>", "special") + "]"), byte_model);
    encodes(tokenizer, "", "");
    encodes(tokenizer, "ab ab", "2 4");
    encodes(tokenizer, "b a\u00e4", "1 3 0 5 6");  // U+00E4 is C3 A4: the characters U+00C3 and U+00A4
    encodes(tokenizer, "a<s> ab", "0 7 4");
    decodes(tokenizer, {2, 7, 4, 5}, "ab ab\uFFFD");
    decodes(tokenizer, {5, 6, -1, 8, 3}, "\u00e4 ");
    test::that(tokenizer.has(7) && !tokenizer.has(8) && !tokenizer.has(-1), "has");
    test::that(tokenizer.is_special(7) && !tokenizer.is_special(0), "is_special");
    test::equal(join(tokenizer.special_ids("<s>")), "7", "special_ids");
    test::equal(join(tokenizer.special_ids("a")), "", "special_ids of a token that is not special");
}

void test_fallback() {
    const std::string normalizer =
        R"({"type": "Sequence", "normalizers": [{"type": "Prepend", "prepend": "▁"},
            {"type": "Replace", "pattern": {"String": " "}, "content": "▁"}]})";
    const std::string processor =
        R"({"type": "TemplateProcessing", "single": [{"SpecialToken": {"id": "x", "type_id": 0}},
            {"Sequence": {"id": "A", "type_id": 0}}], "special_tokens": {"x": {"id": "x", "ids": [9]}}})";
    const Tokenizer tokenizer =
        make(field("normalizer", normalizer) + field("post_processor", processor) + field("decoder", fallback_decoder),
             fallback_model);
    encodes(tokenizer, "a a", "9 5 5");
    encodes(tokenizer, "\u00e4a", "9 3 1 2 4");
    encodes(tokenizer, "xxa", "9 3 0 4");
    encodes(tokenizer, "x\na", "9 3 6 0 4");  // the unknown token comes after the bytes, as in the library
    test::equal(join(tokenizer.encode("a", false)), "5", "ids without special tokens");
    decodes(tokenizer, {5, 1, 2, 5}, "a\u00e4 a");
    decodes(tokenizer, {1, 2, 1, 4}, "\uFFFD\uFFFD\uFFFDa");
    test::that(tokenizer.is_byte(1) && !tokenizer.is_byte(0), "is_byte");
}

void test_added_tokens() {
    const auto base = field("decoder", byte_level);
    const auto make_with = [&](const std::string& tokens) {
        return make(base + field("added_tokens", "[" + tokens + "]"), byte_model);
    };
    encodes(make_with(added("x", "single_word")), "x ax x. x", "8 0 8 8");
    encodes(make_with(added("x", "lstrip rstrip")), "a \u3000x\t a", "0 8 0");
    encodes(make_with(added("x", "") + "," + added("xa", "") + "," + added("b", "")), "xxab", "8 9 1");
    const Tokenizer normalized = make(base + field("normalizer", R"({"type": "NFC"})") +
                                          field("added_tokens", "[" + added("a\u0323", "normalized special") + "]"),
                                      byte_model);
    encodes(normalized, "a\u1ea1b", "0 8 1");
    decodes(normalized, {8}, "\u1ea1");  // as in the library: the special token is not "U+1EA1"
    test::refused([&] { static_cast<void>(make_with(added("x", "") + "," + added("x", ""))); }, Kind::bundle,
                  "added_tokens[1]: found \"x\" a second time", "a token twice");
    const Tokenizer overlap = make_with(added("x", "rstrip") + "," + added(" ", "lstrip"));
    test::refused([&] { static_cast<void>(overlap.encode("x  ", false)); }, Kind::bundle, "white space",
                  "a token in the white space of another");
}

void splits(WordPattern pattern, std::string_view text, const std::string& words) {
    std::string joined;
    for (const std::string_view word : match_words(pattern, text)) joined += molkv::text("[", word, "]");
    test::equal(joined, words, molkv::text("the words of \"", text, "\""));
}

void test_word_patterns() {
    splits(WordPattern::gpt2, "it's  IT'S 1234\n\n x", "[it]['s][ ][ IT]['][S][ 1234][\n\n][ x]");
    splits(WordPattern::llama3, "it's  IT'S 1234\n\n x", "[it]['s][ ][ IT]['S][ ][123][4][\n\n][ x]");
    splits(WordPattern::qwen2, "'\u017F 12 !!\r\n\t\n  ", "['\u017F][ ][1][2][ !!\r\n][\t\n][  ]");
    splits(WordPattern::qwen2, "'\u017Fx 'Sx", "['\u017F][x][ '][Sx]");
    splits(WordPattern::qwen2, "\tab'x(y", "[\tab]['x][(y]");
}

void test_nfc() {
    test::equal(molkv::nfc("a\u0301\u0323"), "\u1EA1\u0301", "marks in another order");
    test::equal(molkv::nfc("\u1112\u1161\u11AB \u212B"), "\uD55C \u00C5", "a syllable and a singleton");
    test::equal(molkv::nfc("e\u030D\u0301"), "e\u030D\u0301", "a mark between a letter and a mark of the same class");
    test::equal(molkv::nfc("\u0958"), "\u0915\u093C", "a composition exclusion");
}

void test_order_of_merges() {
    // "b c" comes first and removes the pair "a b"; then "bc d" comes before "a bc".
    const Tokenizer tokenizer =
        make(field("decoder", byte_level),
             R"({"vocab": {"a": 0, "b": 1, "c": 2, "d": 3, "ab": 4, "bc": 5, "abc": 6, "bcd": 7},
                                         "merges": ["b c", "a b", "bc d", "a bc"]})");
    encodes(tokenizer, "abcd", "0 7");
    encodes(tokenizer, "abc", "6");
}

void test_long_word() {
    const Tokenizer tokenizer = make(field("decoder", byte_level), byte_model);
    std::string word;
    for (int count = 0; count < 200'000; count++) word += "ab";
    test::equal(tokenizer.encode(word, false).size(), 200'000U, "the number of ids of a long word");
}

// The time is linear, although each token takes the white space beside it.
void test_long_space() {
    const std::string spaces(200'000, ' ');
    const char* model = R"({"type": "BPE", "vocab": {" ": 0}, "merges": []})";
    const auto ids = [&](const char* flag) {
        const Tokenizer tokenizer =
            make(field("decoder", byte_level) + field("added_tokens", "[" + added(" ", flag) + "]"), model);
        return tokenizer.encode(spaces, false).size();
    };
    test::equal(ids("lstrip"), spaces.size(), "the number of tokens with lstrip");
    test::equal(ids("rstrip"), spaces.size(), "the number of tokens with rstrip");
}

void refused(const std::string& fields, const char* part, const char* model = byte_model) {
    test::refused([&] { static_cast<void>(make(fields, model)); }, Kind::bundle, part, fields);
}

void test_refused_parts() {
    const auto good = field("decoder", byte_level);
    refused(good + field("normalizer", R"({"type": "Lowercase"})"),
            "tokenizer.json: normalizer: found \"Lowercase\", expected \"NFC\" or \"Prepend\" or \"Replace\"");
    refused(good + field("pre_tokenizer", R"({"type": "Whitespace"})"), "pre_tokenizer: found \"Whitespace\"");
    refused(good + field("pre_tokenizer", R"({"type": "Split", "pattern": {"Regex": "a+"}, "behavior": "Isolated",
                                              "invert": false})"),
            "pre_tokenizer.pattern.Regex: found \"a+\"");
    refused(good + field("post_processor", R"({"type": "BertProcessing"})"),
            "post_processor: found \"BertProcessing\"");
    refused("", "found no field \"decoder\"");
    refused(field("decoder", "null"), "decoder: found \"null\"");
    refused(field("decoder", R"({"type": "WordPiece"})"), "decoder: found \"WordPiece\"");
    refused(field("decoder", R"({"type": "Sequence", "decoders": [{"type": "Fuse"}, {"type": "ByteFallback"}]})"),
            "decoder.decoders[1]: found \"ByteFallback\" after \"Fuse\"");
    refused(good, "model: found \"Unigram\", expected \"BPE\"", R"({"type": "Unigram"})");
    refused(good, "model.dropout", R"({"type": "BPE", "dropout": 0.1, "vocab": {}, "merges": []})");
    refused(good, "model.end_of_word_suffix", R"({"end_of_word_suffix": "</w>", "vocab": {}, "merges": []})");
    refused(good, "model.vocab: found the id 0 a second time", R"({"vocab": {"a": 0, "b": 0}, "merges": []})");
    refused(good, "model.vocab.a", R"({"vocab": {"a": 2147483648}, "merges": []})");
    refused(good, "model.merges[0]: found \"ab\"", R"({"vocab": {"a": 0, "b": 1}, "merges": ["a b"]})");
    refused(good, "model.merges[0]: found \"a\"", R"({"vocab": {"a": 0}, "merges": ["a"]})");
}

// Files whose steps would fill the memory.
void test_refused_growth() {
    const auto repeated = [](std::size_t count, const std::string& part, const char* list) {
        std::string parts;
        for (std::size_t i = 0; i < count; i++) parts += (parts.empty() ? "" : ", ") + part;
        return molkv::text(R"({"type": "Sequence", ")", list, "\": [", parts, "]}");
    };
    const auto good = field("decoder", byte_level);
    const std::string twice = R"({"type": "Replace", "pattern": {"String": "a"}, "content": "aa"})";
    const std::string nfc = R"({"type": "NFC"})";
    static_cast<void>(make(good + field("normalizer", repeated(6, twice, "normalizers")), byte_model));
    refused(good + field("normalizer", repeated(7, twice, "normalizers")), "normalizer.normalizers[6]: found steps");
    refused(good + field("normalizer", repeated(4, nfc, "normalizers")), "normalizer.normalizers[3]: found steps");
    refused(field("decoder", repeated(7, twice, "decoders")), "decoder.decoders[6]: found steps that make a text");
    refused(good + field("pre_tokenizer", repeated(2, byte_level, "pretokenizers")),
            "pre_tokenizer.pretokenizers[1]: found \"ByteLevel\" a second time");
    refused(good + field("normalizer", R"({"type": "Prepend", "prepend": ")" + std::string(1001, 'a') + "\"}"),
            "normalizer.prepend: found a text of 1001 bytes");
    const auto post_processor = [](const std::string& pieces, const std::string& ids) {
        return field("post_processor", molkv::text(R"({"type": "TemplateProcessing", "single": [)", pieces,
                                                   R"(], "special_tokens": {"x": {"ids": [)", ids, "]}}}"));
    };
    std::string pieces = R"({"Sequence": {"id": "A"}})";
    for (int i = 0; i < 500; i++) pieces += R"(, {"SpecialToken": {"id": "x"}})";
    static_cast<void>(make(good + post_processor(pieces, "1, 2"), byte_model));
    refused(good + post_processor(pieces, "1, 2, 3"), "post_processor.single: found 1002 ids, expected at most 1000");
    for (int i = 0; i < 500; i++) pieces += R"(, {"SpecialToken": {"id": "x"}})";
    refused(good + post_processor(pieces, ""), "post_processor.single: found 1001 parts, expected at most 1000");
}

void test_conformance_bundle(const std::string& folder, const char* name) {
    std::ifstream file(molkv::text(folder, "/bundles/", name, "/tokenizer.json"), std::ios::binary);
    std::string content{std::istreambuf_iterator<char>(file), {}};
    if (content.empty()) return test::that(false, molkv::text("no tokenizer in the bundle ", name));
    const Tokenizer tokenizer(std::move(content), "tokenizer.json");
    const std::string text = "def f(x):\n    return x + 1  # caf\u00e9 \U0001F642\n";
    test::equal(tokenizer.decode(tokenizer.encode(text, false)), text, molkv::text("encode and decode of ", name));
}

}  // namespace

int main(int argc, char** argv) {
    test_byte_level();
    test_fallback();
    test_added_tokens();
    test_word_patterns();
    test_nfc();
    test_order_of_merges();
    test_long_word();
    test_long_space();
    test_refused_parts();
    test_refused_growth();
    if (argc > 1) {
        test_conformance_bundle(argv[1], "bytes");
        test_conformance_bundle(argv[1], "byte-fallback");
    }
    return test::finish();
}
