#include "json.h"

#include <algorithm>
#include <array>
#include <charconv>
#include <cmath>
#include <unordered_set>

#include "utf8.h"

namespace molkv {

namespace {

constexpr int deepest = 64;  // levels of arrays and objects
constexpr std::array<std::string_view, 7> type_names = {"null",   "a boolean", "an integer", "a number",
                                                        "a text", "a list",    "an object"};

bool is_digit(char c) {
    return c >= '0' && c <= '9';
}

}  // namespace

// A recursive-descent parser that appends nodes to a document.
class JsonParser {
 public:
    explicit JsonParser(Json& json) : json_(json), rest_(json.content_) {}

    void parse() {
        if (!is_utf8(rest_)) refuse("bytes that are not UTF-8");
        value({}, 0, 0);
        spaces();
        if (!rest_.empty()) refuse("text after the end of the document");
    }

 private:
    using Type = JsonValue::Type;

    [[noreturn]] void refuse(std::string_view found) const {
        fail(json_.kind_, json_.where_, ": is not valid JSON: found ", found, " at byte ",
             json_.content_.size() - rest_.size());
    }

    void spaces() { rest_.remove_prefix(std::min(rest_.find_first_not_of(" \t\r\n"), rest_.size())); }

    bool take(std::string_view expected) {
        if (!rest_.starts_with(expected)) return false;
        rest_.remove_prefix(expected.size());
        return true;
    }

    void value(std::string_view key, std::size_t parent, int depth) {
        if (depth > deepest) refuse("more than 64 levels of lists and objects");
        spaces();
        const std::size_t place = json_.nodes_.size();
        json_.nodes_.push_back({{}, key, parent, 0, 0, Type::null, false});
        if (take("{")) {
            object(place, depth);
        } else if (take("[")) {
            array(place, depth);
        } else if (take("\"")) {
            json_.nodes_[place].type = Type::string;
            json_.nodes_[place].text = string();
        } else if (take("true") || take("false")) {
            json_.nodes_[place].type = Type::boolean;
            json_.nodes_[place].truth = *(rest_.data() - 2) == 'u';
        } else if (!take("null")) {
            number(json_.nodes_[place]);
        }
        json_.nodes_[place].end = json_.nodes_.size();
    }

    void object(std::size_t place, int depth) {
        json_.nodes_[place].type = Type::object;
        std::unordered_set<std::string_view> keys;
        spaces();
        if (take("}")) return;
        do {
            spaces();
            if (!take("\"")) refuse("no key of an object");
            const std::string_view key = string();
            if (!keys.insert(key).second) refuse(text("the key \"", key, "\" a second time"));
            spaces();
            if (!take(":")) refuse("no colon after a key");
            value(key, place, depth + 1);
            json_.nodes_[place].count++;
            spaces();
        } while (take(","));
        if (!take("}")) refuse("no end of an object");
    }

    void array(std::size_t place, int depth) {
        json_.nodes_[place].type = Type::array;
        spaces();
        if (take("]")) return;
        do {
            value({}, place, depth + 1);
            json_.nodes_[place].count++;
            spaces();
        } while (take(","));
        if (!take("]")) refuse("no end of a list");
    }

    void number(Json::Node& node) {
        const std::string_view start = rest_;
        node.type = Type::integer;
        take("-");
        if (!take("0") && digits() == 0) refuse("no value");
        if (take(".")) {
            node.type = Type::number;
            if (digits() == 0) refuse("no digit after the decimal point");
        }
        if (take("e") || take("E")) {
            node.type = Type::number;
            if (!take("+")) take("-");
            if (digits() == 0) refuse("no digit in an exponent");
        }
        node.text = start.substr(0, start.size() - rest_.size());
    }

    std::size_t digits() {
        const auto count =
            static_cast<std::size_t>(std::find_if_not(rest_.begin(), rest_.end(), is_digit) - rest_.begin());
        rest_.remove_prefix(count);
        return count;
    }

    // Read the characters of a string and the quotation mark after it.
    std::string_view string() {
        const std::string_view start = rest_;
        const std::size_t plain = plain_characters();
        if (take("\"")) return start.substr(0, plain);
        std::string decoded(start.substr(0, plain));
        while (!take("\"")) {
            if (take("\\")) {
                escape(decoded);
            } else {
                const std::string_view more = rest_;
                const std::size_t count = plain_characters();
                if (count == 0) refuse("a control character, or no end, in a text");
                decoded += more.substr(0, count);
            }
        }
        return json_.decoded_.emplace_back(std::move(decoded));
    }

    std::size_t plain_characters() {
        const auto end = std::find_if(rest_.begin(), rest_.end(), [](char c) {
            return c == '"' || c == '\\' || static_cast<unsigned char>(c) < 0x20;
        });
        const auto count = static_cast<std::size_t>(end - rest_.begin());
        rest_.remove_prefix(count);
        return count;
    }

    void escape(std::string& out) {
        constexpr std::string_view names = "\"\\/bfnrt";
        constexpr std::string_view meanings = "\"\\/\b\f\n\r\t";
        if (take("u")) {
            append_utf8(out, code_point());
            return;
        }
        const std::size_t place = rest_.empty() ? std::string_view::npos : names.find(rest_.front());
        if (place == std::string_view::npos) refuse("an unknown escape sequence");
        out += meanings[place];
        rest_.remove_prefix(1);
    }

    char32_t code_point() {
        const char32_t first = hexadecimal();
        if (first < 0xD800 || first > 0xDFFF) return first;
        if (first > 0xDBFF || !take("\\u")) refuse("half of a surrogate pair");
        const char32_t second = hexadecimal();
        if (second < 0xDC00 || second > 0xDFFF) refuse("half of a surrogate pair");
        return 0x10000 + ((first - 0xD800) << 10U) + (second - 0xDC00);
    }

    char32_t hexadecimal() {
        std::uint32_t code = 0;
        const std::string_view digits = rest_.substr(0, 4);
        const auto [end, error] = std::from_chars(digits.data(), digits.data() + digits.size(), code, 16);
        if (digits.size() < 4 || error != std::errc() || end != digits.data() + 4) refuse("a wrong escape sequence");
        rest_.remove_prefix(4);
        return code;
    }

    Json& json_;
    std::string_view rest_;
};

Json::Json(std::string content, std::string where, Kind kind)
    : content_(std::move(content)), where_(std::move(where)), kind_(kind) {
    JsonParser(*this).parse();
}

JsonValue::Type JsonValue::type() const {
    return json_->nodes_[node_].type;
}

std::string_view JsonValue::key() const {
    return json_->nodes_[node_].key;
}

std::string_view JsonValue::expect_type(Type type) const {
    const Json::Node& node = json_->nodes_[node_];
    if (node.type != type) {
        refuse(type_names[static_cast<std::size_t>(node.type)], type_names[static_cast<std::size_t>(type)]);
    }
    return node.text;
}

bool JsonValue::boolean() const {
    static_cast<void>(expect_type(Type::boolean));
    return json_->nodes_[node_].truth;
}

std::int64_t JsonValue::integer(std::int64_t least, std::int64_t most) const {
    const std::string_view digits = expect_type(Type::integer);
    std::int64_t value = 0;
    const auto [end, error] = std::from_chars(digits.data(), digits.data() + digits.size(), value);
    if (error != std::errc() || value < least || value > most) {
        refuse(digits, least == most ? text(least) : text(least, " to ", most));
    }
    return value;
}

double JsonValue::number() const {
    const Json::Node& node = json_->nodes_[node_];
    const std::string_view digits = expect_type(node.type == Type::integer ? Type::integer : Type::number);
    // libc++ of older NDKs has no from_chars for floating-point numbers; a stream in the classic locale is everywhere.
    std::istringstream stream{std::string(digits)};
    stream.imbue(std::locale::classic());
    double value = 0;
    stream >> value;
    if (stream.fail() || !std::isfinite(value)) refuse(digits, "a number that a float64 can hold");
    return value;
}

std::string_view JsonValue::string() const {
    return expect_type(Type::string);
}

std::size_t JsonValue::size() const {
    if (type() != Type::array) static_cast<void>(expect_type(Type::object));
    return json_->nodes_[node_].count;
}

std::vector<JsonValue> JsonValue::items() const {
    std::vector<JsonValue> found;
    found.reserve(size());
    for (std::size_t node = node_ + 1; node < json_->nodes_[node_].end; node = json_->nodes_[node].end) {
        found.push_back({json_, node});
    }
    return found;
}

std::vector<JsonValue> JsonValue::list() const {
    static_cast<void>(expect_type(Type::array));
    return items();
}

std::vector<JsonValue> JsonValue::fields() const {
    static_cast<void>(expect_type(Type::object));
    return items();
}

std::optional<JsonValue> JsonValue::find(std::string_view name) const {
    static_cast<void>(expect_type(Type::object));
    for (std::size_t node = node_ + 1; node < json_->nodes_[node_].end; node = json_->nodes_[node].end) {
        if (json_->nodes_[node].key == name) return JsonValue(json_, node);
    }
    return std::nullopt;
}

JsonValue JsonValue::operator[](std::string_view name) const {
    const std::optional<JsonValue> found = find(name);
    if (!found) refuse(text("no field \"", name, "\""), "one");
    return *found;
}

void JsonValue::expect_fields(std::initializer_list<std::string_view> names) const {
    for (const JsonValue& field : items()) {
        if (std::find(names.begin(), names.end(), field.key()) == names.end()) {
            refuse(text("the unknown field \"", field.key(), "\""), "only the fields of the bundle format");
        }
    }
    for (const std::string_view name : names) static_cast<void>((*this)[name]);
}

void JsonValue::refuse(std::string_view found, std::string_view expected) const {
    const std::string place = path();
    fail(json_->kind_, json_->where_, ": ", place, place.empty() ? "" : ": ", "found ", found, ", expected ", expected);
}

std::string JsonValue::path() const {
    if (node_ == 0) return "";
    const std::size_t parent = json_->nodes_[node_].parent;
    const std::string before = JsonValue(json_, parent).path();
    if (json_->nodes_[parent].type == Type::object) {
        return text(before, before.empty() ? "" : ".", key());
    }
    std::size_t index = 0;
    for (std::size_t node = parent + 1; node != node_; node = json_->nodes_[node].end) index++;
    return text(before, "[", index, "]");
}

}  // namespace molkv
