// The parts of an ONNX file that a dense graph may have (docs/bundle-format.md, "What a graph may hold", Fields).
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

namespace molkv {

// The numbers of AttributeProto.type.
enum class AttributeType : std::uint8_t { real = 1, integer = 2, string = 3, tensor = 4, integers = 7 };

struct OnnxTensor {
    std::string_view name;
    std::vector<std::int64_t> shape;
    std::int64_t data_type = 0;
    std::int64_t data_location = 0;
    std::optional<std::string_view> raw_data;
    std::vector<std::pair<std::string_view, std::string_view>> external_data;  // keys and values
};

struct OnnxAttribute {
    std::string_view name;
    std::int64_t type = 0;
    std::vector<AttributeType> values;  // the types of the fields that hold a value; several numbers count once
    std::vector<std::int64_t> integers;
    std::optional<OnnxTensor> tensor;
};

struct OnnxNode {
    std::string_view name;
    std::string_view op_type;
    std::string_view domain;
    std::vector<std::string_view> inputs;
    std::vector<std::string_view> outputs;
    std::vector<OnnxAttribute> attributes;
};

// All texts are views of the content.
struct OnnxModel {
    std::vector<std::pair<std::string_view, std::int64_t>> opsets;  // domain and version
    std::vector<std::string_view> inputs;
    std::vector<std::string_view> outputs;
    std::vector<OnnxTensor> initializers;
    std::vector<OnnxNode> nodes;
};

// Decode an ONNX file. A field that is not in the table of the document, or that occurs twice although it is not
// repeated, is a bundle error. `where` names the file.
OnnxModel decode_onnx(std::string_view content, const std::string& where);

}  // namespace molkv
