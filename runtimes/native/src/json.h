// A strict reader of JSON (RFC 8259): a key that occurs twice, NaN, Infinity and text after the document are errors.
#pragma once

#include <cstddef>
#include <cstdint>
#include <deque>
#include <initializer_list>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "error.h"

namespace molkv {

class Json;

// A value of a Json document, and its place in it. Valid as long as the document. Cheap to copy. Each function that
// returns a C++ value throws an Error of the document's kind if the JSON value has another type or range. The message
// names the file and the field.
class JsonValue {
 public:
    enum class Type : std::uint8_t { null, boolean, integer, number, string, array, object };

    [[nodiscard]] Type type() const;
    [[nodiscard]] bool is_null() const { return type() == Type::null; }

    [[nodiscard]] bool boolean() const;
    // An integer from `least` to `most`. 61.0 is no integer.
    [[nodiscard]] std::int64_t integer(std::int64_t least, std::int64_t most) const;
    [[nodiscard]] double number() const;
    // Valid UTF-8, with escapes replaced.
    [[nodiscard]] std::string_view string() const;

    // The number of items of an array or object. An error for other types.
    [[nodiscard]] std::size_t size() const;
    // The items of an array, or the values of an object, in the order of the file.
    [[nodiscard]] std::vector<JsonValue> items() const;
    // The same, but only of an array or only of an object. An error for other types.
    [[nodiscard]] std::vector<JsonValue> list() const;
    [[nodiscard]] std::vector<JsonValue> fields() const;
    // The name of this value in its object; empty in an array.
    [[nodiscard]] std::string_view key() const;

    // The field of an object. An error if it does not exist.
    [[nodiscard]] JsonValue operator[](std::string_view name) const;
    // The field of an object, or nothing.
    [[nodiscard]] std::optional<JsonValue> find(std::string_view name) const;
    // Check that an object has exactly these fields.
    void expect_fields(std::initializer_list<std::string_view> names) const;

    // Throw an Error: FILE: FIELD: found FOUND, expected EXPECTED.
    [[noreturn]] void refuse(std::string_view found, std::string_view expected) const;
    // The place in the document, such as "graphs.cpu.files[0].length".
    [[nodiscard]] std::string path() const;

 private:
    friend class Json;
    JsonValue(const Json* json, std::size_t node) : json_(json), node_(node) {}
    [[nodiscard]] std::string_view expect_type(Type type) const;
    const Json* json_;
    std::size_t node_;
};

// A parsed document. It keeps the text, and one small node for each value.
class Json {
 public:
    // Parse a document. `where` names it in messages; `kind` is the kind of its errors.
    Json(std::string content, std::string where, Kind kind);
    Json(const Json&) = delete;
    Json& operator=(const Json&) = delete;

    [[nodiscard]] JsonValue root() const { return {this, 0}; }
    [[nodiscard]] const std::string& where() const { return where_; }

 private:
    friend class JsonValue;
    friend class JsonParser;
    struct Node {
        std::string_view text;  // of a string: its characters; of a number: its digits
        std::string_view key;
        std::size_t parent;
        std::size_t end;    // the index after the last node inside this one
        std::size_t count;  // items of an array or object
        JsonValue::Type type;
        bool truth;
    };
    std::string content_;
    std::string where_;
    Kind kind_;
    std::deque<std::string> decoded_;  // strings with escapes
    std::vector<Node> nodes_;          // in the order of the file
};

}  // namespace molkv
