// The closed list of operators of docs/bundle-format.md, "What a graph may hold".
#pragma once

#include <optional>
#include <string_view>

#include "onnx_model.h"

namespace molkv {

// The inputs, outputs and attributes that nodes of an operator may have.
struct Operator {
    std::string_view domain;
    std::string_view name;
    // One character for each input: `x` has a name, `-` is empty. Alternatives are separated by a space.
    std::string_view inputs;
    std::string_view outputs;
    // The name of each allowed attribute and the letter of its type, separated by spaces: "axis:i epsilon:f".
    // f: float, i: int, s: string, t: tensor, l: ints.
    std::string_view attributes;
};

// Return the operator, or nullptr if it is not on the list.
const Operator* find_operator(std::string_view domain, std::string_view name);

// Whether inputs or outputs such as "x--x" are one of the alternatives.
bool is_allowed(std::string_view alternatives, std::string_view found);

// Return the type of an attribute, or nothing if nodes of this operator may not have it.
std::optional<AttributeType> attribute_type(const Operator& allowed, std::string_view name);

}  // namespace molkv
