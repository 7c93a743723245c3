// Messages of errors: names from files cannot write to a terminal, and cannot add lines to a message.
#include "check.h"
#include "json.h"

namespace test = molkv::test;

namespace {

void shown_as(std::string_view text, const std::string& expected) {
    test::equal(std::string(molkv::Error(molkv::Kind::bundle, text).what()), expected, "a message");
}

}  // namespace

int main() {
    shown_as("model.onnx: \"\xC3\xA4\xE2\x96\x81\xF0\x9F\x98\x80\" \\n",
             "model.onnx: \"\xC3\xA4\xE2\x96\x81\xF0\x9F\x98\x80\" \\n");
    shown_as("\x1b[2J a\r\nb\tc\x7f", "\\x1b[2J a\\x0d\\x0ab\\x09c\\x7f");
    shown_as(std::string_view("a\0b", 3), "a\\x00b");
    shown_as("\xC2\x9B[31m", "\\x9b[31m");                                 // a control character of 8 bits
    shown_as("\xE2\x80\xAEgpj.exe\xE2\x80\xA9", "\\u202egpj.exe\\u2029");  // right to left; a paragraph separator
    shown_as("\xE2\x96", "\\xe2\\x96");                                    // a name that was cut inside a character
    shown_as("\\x1b", "\\x1b");                                            // so a message can quote another message
    test::refused([] { molkv::Json("{\"a\\u001b[2J\": 1}", "x", molkv::Kind::bundle).root().expect_fields({"b"}); },
                  molkv::Kind::bundle, "the unknown field \"a\\x1b[2J\"", "an unknown field with a control character");
    return test::finish();
}
