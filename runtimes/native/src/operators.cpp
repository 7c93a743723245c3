// The closed list of operators. Some kernels of ONNX Runtime crash on nodes that break the operator's specification.
#include "operators.h"

#include <algorithm>
#include <array>

namespace molkv {

namespace {

constexpr std::string_view ms = "com.microsoft";

// clang-format off
constexpr std::array<Operator, 34> operators = {{
    {"", "Abs", "x", "x", ""},
    {"", "Add", "xx", "x", ""},
    {"", "Cast", "x", "x", "to:i"},
    {"", "CastLike", "xx", "x", ""},
    {"", "Concat", "xx xxx", "x", "axis:i"},
    {"", "Constant", "", "x", "value:t value_float:f value_ints:l"},
    {"", "DequantizeLinear", "xxx", "x", ""},
    {"", "Div", "xx", "x", ""},
    {"", "Exp", "x", "x", ""},
    {"", "Gelu", "x", "x", "approximate:s"},
    {"", "MatMul", "xx", "x", ""},
    {"", "Max", "xx", "x", ""},
    {"", "Mul", "xx", "x", ""},
    {"", "QuantizeLinear", "xxx", "x", ""},
    {"", "ReduceMax", "xx", "x", "keepdims:i"},
    {"", "ReduceMean", "xx", "x", "keepdims:i"},
    {"", "Relu", "x", "x", ""},
    {"", "Reshape", "xx", "x", ""},
    {"", "Shape", "x", "x", "end:i start:i"},
    {"", "Sigmoid", "x", "x", ""},
    {"", "SimplifiedLayerNormalization", "xx", "x", "axis:i epsilon:f stash_type:i"},
    {"", "Slice", "xxxx xxxxx", "x", ""},
    {"", "Softmax", "x", "x", "axis:i"},
    {"", "Sqrt", "x", "x", ""},
    {"", "Squeeze", "xx", "x", ""},
    {"", "Sub", "xx", "x", ""},
    {"", "Tanh", "x", "x", ""},
    {"", "Transpose", "x", "x", "perm:l"},
    {"", "Unsqueeze", "xx", "x", ""},
    {ms, "GroupQueryAttention", "x--xxxxxx x--xxxxxx---xx", "xxx",
     "do_rotary:i k_quant_type:s kv_cache_bit_width:i kv_num_heads:i local_window_size:i num_heads:i scale:f "
     "v_quant_type:s"},
    {ms, "MatMulIntegerToFloat", "xxxxx", "x", ""},
    {ms, "MatMulNBits", "xxx", "x", "K:i N:i accuracy_level:i bits:i block_size:i"},
    {ms, "RotaryEmbedding", "xxxx", "x", "num_heads:i"},
    {ms, "SkipSimplifiedLayerNormalization", "xxx", "xxxx", "epsilon:f"},
}};
// clang-format on

// Call `visit` with each part of a list that is separated by spaces, until it returns true.
template <typename Visit>
bool any_part(std::string_view list, const Visit& visit) {
    while (true) {
        const std::size_t end = std::min(list.find(' '), list.size());
        if (visit(list.substr(0, end))) return true;
        if (end == list.size()) return false;
        list.remove_prefix(end + 1);
    }
}

}  // namespace

const Operator* find_operator(std::string_view domain, std::string_view name) {
    const auto* found = std::find_if(operators.begin(), operators.end(),
                                     [&](const Operator& one) { return one.name == name && one.domain == domain; });
    return found == operators.end() ? nullptr : found;
}

bool is_allowed(std::string_view alternatives, std::string_view found) {
    return any_part(alternatives, [found](std::string_view one) { return one == found; });
}

std::optional<AttributeType> attribute_type(const Operator& allowed, std::string_view name) {
    constexpr std::string_view letters = "fistl";
    constexpr std::array types = {AttributeType::real, AttributeType::integer, AttributeType::string,
                                  AttributeType::tensor, AttributeType::integers};
    std::optional<AttributeType> found;
    any_part(allowed.attributes, [&](std::string_view one) {
        const std::size_t colon = one.find(':');
        if (one.empty() || one.substr(0, colon) != name) return false;
        found = types[letters.find(one.back())];
        return true;
    });
    return found;
}

}  // namespace molkv
