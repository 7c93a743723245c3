// Fields of the parts of a tokenizer.json: types, flags with defaults, and texts.
#pragma once

#include <algorithm>
#include <initializer_list>
#include <string>
#include <string_view>
#include <vector>

#include "json.h"

namespace molkv {

// Return the `type` of a part. Refuse the part if its type is not one of `expected`.
inline std::string_view expect_type(const JsonValue& part, std::initializer_list<std::string_view> expected) {
    const std::string_view type = part.is_null() ? "null" : part["type"].string();
    if (std::find(expected.begin(), expected.end(), type) != expected.end()) return type;
    std::string names;
    for (const std::string_view name : expected) names += text(names.empty() ? "" : " or ", "\"", name, "\"");
    part.refuse(text("\"", type, "\""), names);
}

// Return the parts of a Sequence, which are in the field `list`; or a list of the part itself if it has another type.
inline std::vector<JsonValue> parts_of_sequence(const JsonValue& part, std::string_view list) {
    if (part["type"].string() != "Sequence") return {part};
    return part[list].items();
}

// Return a boolean field, or its default if it is missing.
inline bool flag(const JsonValue& part, std::string_view name, bool otherwise) {
    const auto field = part.find(name);
    return field ? field->boolean() : otherwise;
}

// Refuse a field that has another text.
inline void expect_text(const JsonValue& field, std::string_view expected) {
    if (field.string() != expected) field.refuse(text("\"", field.string(), "\""), text("\"", expected, "\""));
}

}  // namespace molkv
