#include "check.h"
#include "json.h"

using molkv::Json;
using molkv::Kind;
namespace test = molkv::test;

namespace {

void refused(const char* content, const char* part) {
    test::refused([content] { const Json json(content, "x.json", Kind::bundle); }, Kind::bundle, part, content);
}

}  // namespace

int main() {
    const Json json(R"( {"a": [1, -2.5e1, "\u00e4\ud83d\ude00\n"], "b": {"c": true, "d": null}} )", "x.json",
                    Kind::request);
    const auto a = json.root()["a"].items();
    test::equal(a[0].integer(0, 5), 1, "an integer");
    test::equal(a[1].number(), -25.0, "a number");
    test::equal(a[2].string(), "\u00e4\U0001F600\n", "a text with escapes");
    test::that(json.root()["b"]["c"].boolean(), "a boolean");
    test::that(json.root()["b"]["d"].is_null(), "null");
    test::equal(a[1].path(), "a[1]", "a path");
    test::refused([&] { static_cast<void>(a[0].integer(2, 5)); }, Kind::request,
                  "x.json: a[0]: found 1, expected 2 to 5", "an integer out of its range");
    test::refused([&] { static_cast<void>(a[1].integer(0, 5)); }, Kind::request, "a[1]: found a number", "a fraction");
    test::refused([&] { json.root()["b"].expect_fields({"c"}); }, Kind::request, "unknown field \"d\"",
                  "unknown field");
    test::refused(
        [&] {
            json.root()["b"].expect_fields({"c", "d", "e"});
        },
        Kind::request, "no field \"e\"", "missing field");

    refused(R"({"a": 1, "a": 2})", "the key \"a\" a second time");
    refused(R"({"a": {"b": 1, "\u0062": 2}})", "the key \"b\" a second time");
    refused("NaN", "at byte 0");
    refused("[Infinity]", "at byte 1");
    refused("[1,]", "no value");
    refused("[01]", "no end of a list");
    refused("1 2", "text after the end");
    refused("\"\\ud800\"", "surrogate");
    refused("\"\x01\"", "control character");
    refused("\"\xff\"", "not UTF-8");
    refused("\"abc", "no end");
    refused("", "no value");
    refused(std::string(100, '[').c_str(), "64 levels");
    return test::finish();
}
