// ONNX files that are built here field by field: a valid one, and one case for each rule of docs/bundle-format.md,
// "What a graph may hold".
#include "check.h"
#include "graph_file.h"

namespace test = molkv::test;

namespace {

std::string varint(std::uint64_t value) {
    std::string bytes;
    for (; value >= 0x80; value >>= 7U) bytes += static_cast<char>((value & 0x7FU) | 0x80U);
    return bytes + static_cast<char>(value);
}

// A field with bytes, or with an integer.
std::string field(unsigned number, const std::string& content) {
    return varint(number << 3U | 2U) + varint(content.size()) + content;
}
std::string field(unsigned number, std::int64_t value) {
    return varint(number << 3U) + varint(static_cast<std::uint64_t>(value));
}

std::string float_field(unsigned number) {
    return varint(number << 3U | 5U) + std::string(4, '\0');
}

std::string opset(const std::string& domain, std::int64_t version) {
    return field(8, (domain.empty() ? "" : field(1, domain)) + field(2, version));
}

std::string value(const std::string& name) {
    return field(1, name);
}

// A tensor of float32 [2, 3] without its data.
std::string tensor(const std::string& name) {
    return field(1, 2) + field(1, 3) + field(2, 1) + field(8, name);
}

std::string raw(const std::string& name) {
    return tensor(name) + field(9, std::string(24, '\0'));
}

std::string entry(const std::string& key, const std::string& content) {
    return field(13, field(1, key) + field(2, content));
}

std::string external(const std::string& location, const std::string& offset, const std::string& length) {
    return tensor("w") + entry("location", location) + entry("offset", offset) + entry("length", length) + field(14, 1);
}

// A node; each name is one input or output.
std::string node(const std::string& type, const std::vector<std::string>& inputs,
                 const std::vector<std::string>& outputs, const std::string& more = "") {
    std::string message;
    for (const std::string& name : inputs) message += field(1, name);
    for (const std::string& name : outputs) message += field(2, name);
    return message + field(4, type) + more;
}

std::string attribute(const std::string& name, std::int64_t type, const std::string& content) {
    return field(5, field(1, name) + content + field(20, type));
}

// A graph with the input x, the initializer w, nodes, and the output y.
std::string graph(const std::vector<std::string>& nodes, const std::string& initializer = raw("w")) {
    std::string message = field(2, "graph") + field(11, value("x")) + field(5, initializer);
    for (const std::string& one : nodes) message += field(1, one);
    return message + field(12, value("y"));
}

std::string model(const std::string& content, const std::string& opsets = opset("", 22)) {
    return field(1, 10) + field(7, content) + opsets;
}

void check(const std::string& content) {
    molkv::check_graph_file(content, "g", "data", 1000);
}

void refused(const std::string& content, const char* part) {
    test::refused([&] { check(content); }, molkv::Kind::bundle, part, part);
}

void refused_node(const std::string& one, const char* part) {
    refused(model(graph({one})), part);
}

void refused_tensor(const std::string& one, const char* part) {
    refused(model(graph({node("Add", {"x", "w"}, {"y"})}, one)), part);
}

const std::string add = node("Add", {"x", "w"}, {"y"});

// A GroupQueryAttention with these attributes.
std::string attention(const std::string& attributes) {
    return node("GroupQueryAttention", {"x", "", "", "w", "w", "w", "w", "w", "w"}, {"y", "a", "b"},
                field(7, "com.microsoft") + attributes);
}

void check_good() {
    check(model(graph({add})));
    check(model(graph({add}), opset("", 22) + opset("com.microsoft", 1)));
    check(model(graph({add}, external("data", "976", "24"))));
    check(model(graph({node("Softmax", {"x"}, {"a"}, attribute("axis", 2, field(3, -1))),
                       node("Transpose", {"a"}, {"y"}, attribute("perm", 7, field(8, 1) + field(8, 0)))})));
    check(model(graph({node("Constant", {}, {"y"}, attribute("value", 4, field(5, raw(""))))})));
    check(model(graph({node("Gelu", {"x"}, {"y"}, attribute("approximate", 3, field(4, "none")))})));
    check(model(graph({node("SkipSimplifiedLayerNormalization", {"x", "w", "w"}, {"y", "a", "b", "c"},
                            field(7, "com.microsoft") + attribute("epsilon", 1, float_field(2)))}),
                opset("com.microsoft", 1) + opset("", 22)));
    check(model(graph({node("Tanh", {"x"}, {"y"})})));
    check(model(
        graph({attention(attribute("local_window_size", 2, field(3, 8)) + attribute("scale", 1, float_field(2)))}),
        opset("", 22) + opset("com.microsoft", 1)));
}

void check_messages() {
    refused("", "ModelProto without graph");
    refused("\xff", "the end of a message inside a number");
    refused(std::string("\x08") + std::string(10, '\xff') + "\x01", "more than 64 bits");
    refused(std::string("\x08") + std::string(9, '\x80') + "\x02", "more than 64 bits");
    refused("\x3a\x05x", "longer than its message");
    refused(field(7, 1), "wrong wire type");
    refused("\x0b", "unknown wire type");
    refused(field(0, 1), "field 0 of ModelProto");
    refused(field(4000000000U, 1), "not allowed");
    refused(model(graph({add})) + field(25, ""), "field 25 of ModelProto");
    refused(model(graph({add})) + field(7, graph({add})), "a second time");
    refused(model(graph({add}) + field(15, "")), "field 15 of GraphProto");
    refused_node(add + field(4, "Sub"), "a second time");
    refused_node(add + field(6, "doc"), "field 6 of NodeProto");
    refused_node(add + attribute("body", 5, field(6, "")), "field 6 of AttributeProto");
    refused_node(node("Add", {"x", "\xff"}, {"y"}), "not UTF-8");
    refused_node("", "without output and op_type");
    refused_tensor(raw("w") + field(4, std::string(4, '\0')), "field 4 of TensorProto");
}

void check_opsets() {
    refused(model(graph({add}), ""), "no operator set");
    refused(model(graph({add}), opset("", 21)), "operator set 21");
    refused(model(graph({add}), opset("", 22) + opset("com.microsoft", 2)), "operator set 2");
    refused(model(graph({add}), opset("", 22) + opset("", 22)), "at most once");
    refused(model(graph({add}), opset("", 22) + opset("other", 1)), "the domain \"other\"");
}

void check_nodes() {
    refused_node(node("If", {"x"}, {"y"}), "that dense graphs may not have");
    refused_node(node("Add", {"x", "w"}, {"y"}, field(7, "com.microsoft")), "the domain \"com.microsoft\"");
    refused_node(node("Add", {"x"}, {"y"}), "the inputs \"x\"");
    refused_node(node("Add", {"x", ""}, {"y"}), "the inputs \"x-\"");
    refused_node(node("Add", {"x", "w", ""}, {"y"}), "the inputs \"xx-\"");
    refused_node(node("Add", {"x", "w"}, {"y", "z"}), "the outputs \"xx\"");
    refused_node(node("Add", {"x", "w"}, {""}), "the outputs \"-\"");
    refused_node(node("Add", {"x", "z"}, {"y"}), "uses \"z\"");
    refused_node(node("Add", {"x", "y"}, {"y"}), "uses \"y\"");
    refused_node(node("Add", {"x", "w"}, {"z"}), "uses \"y\"");
    refused_node(node("Add", {"x", "w"}, {"w"}), "defines \"w\" twice");
    refused_tensor(raw("x"), "defines \"x\" twice");
    refused_tensor(raw(""), "without a name");
}

void check_attributes() {
    const auto softmax = [](const std::string& more) { return node("Softmax", {"x"}, {"y"}, more); };
    refused_node(softmax(attribute("other", 2, field(3, 1))), "attribute \"other\"");
    refused_node(softmax(attribute("axis", 2, field(3, 1)) + attribute("axis", 2, field(3, 1))), "attribute \"axis\"");
    refused_node(softmax(attribute("axis", 1, field(3, 1))), "attribute \"axis\"");
    refused_node(softmax(attribute("axis", 1, float_field(2))), "attribute \"axis\"");
    refused_node(softmax(attribute("axis", 2, "")), "attribute \"axis\"");
    refused_node(softmax(attribute("axis", 2, field(3, 1) + field(4, "1"))), "attribute \"axis\"");
    refused_node(softmax(attribute("axis", 2, field(3, -2))), "attribute \"axis\"");
    refused_node(softmax(attribute("axis", 2, field(3, std::int64_t{1} << 31U))), "attribute \"axis\"");
    const auto both = opset("", 22) + opset("com.microsoft", 1);
    refused(model(graph({attention(attribute("scale", 2, field(3, 1)))}), both), "attribute \"scale\"");
    refused(model(graph({attention(attribute("softcap", 1, float_field(2)))}), both), "attribute \"softcap\"");
    refused_node(node("Transpose", {"x"}, {"y"}, attribute("perm", 7, field(8, -2))), "attribute \"perm\"");
    refused_node(node("Transpose", {"x"}, {"y"}, attribute("perm", 7, field(8, "\x01"))), "wrong wire type");
    refused_node(node("Constant", {}, {"y"}, attribute("value", 4, field(5, tensor("")))), "has 0 bytes, expected 24");
    refused_node(node("Constant", {}, {"y"}, attribute("value", 4, field(5, external("data", "0", "24")))),
                 "has a tensor in another file, expected it in the graph");
}

void check_tensors() {
    refused_tensor(raw("w") + field(1, std::int64_t{1} << 31U), "3 dimensions");
    refused_tensor(raw("w") + field(1, -1), "3 dimensions");
    refused_tensor(field(2, 8) + field(8, "w"), "the data type 8");
    refused_tensor(field(8, "w"), "TensorProto without data_type");
    refused_tensor(raw("w") + field(1, 2), "has 24 bytes, expected 48");
    std::string many = raw("w");
    for (int i = 0; i < 7; i++) many += field(1, 1);
    refused_tensor(many, "9 dimensions");
    // The size is 4 * 2^64, which is 0 in 64 bits.
    std::string huge = field(2, 1) + field(8, "w");
    for (int i = 0; i < 4; i++) huge += field(1, 65536);
    refused_tensor(huge, "expected 18446744073709551615");
    refused_tensor(raw("w") + field(14, 1), "expected 24 bytes inside data");
    refused_tensor(raw("w") + field(14, std::int64_t{1} << 32U), "expected 24 bytes inside data");
    refused_tensor(external("data", "0", "24") + field(9, std::string(24, '\0')), "inside data");
    refused_tensor(external("/etc/passwd", "0", "24"), "in \"/etc/passwd\"");
    refused_tensor(external("data", "977", "24"), "at byte 977");
    refused_tensor(external("data", "999999999999999999", "24"), "inside data");
    refused_tensor(external("data", "18446744073709551615", "24"), "at byte -1");
    refused_tensor(external("data", "-1", "24"), "at byte -1");
    refused_tensor(external("data", "", "24"), "at byte -1");
    refused_tensor(external("data", "0", "23"), "with length 23");
    refused_tensor(external("data", "0", "24") + entry("checksum", "1"), "inside data");
    refused_tensor(external("data", "0", "24") + entry("length", "24"), "inside data");
    refused_tensor(tensor("w") + entry("location", "data") + entry("offset", "0") + field(14, 1), "length -1");
    refused_tensor(tensor("w") + entry("location", "data") + entry("offset", "0") + entry("length", "24"), "inside");
}

}  // namespace

int main() {
    check_good();
    check_messages();
    check_opsets();
    check_nodes();
    check_attributes();
    check_tensors();
    return test::finish();
}
