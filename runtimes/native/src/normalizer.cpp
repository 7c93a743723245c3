// The steps of a normalizer.
#include "normalizer.h"

#include <utility>

#include "json_fields.h"
#include "unicode.h"

namespace molkv {

std::string replace_all(std::string_view text, std::string_view from, std::string_view to) {
    std::string replaced;
    replaced.reserve(text.size());
    for (std::size_t at = text.find(from); at != std::string_view::npos; at = text.find(from)) {
        replaced.append(text.substr(0, at)).append(to);
        text.remove_prefix(at + from.size());
    }
    return replaced.append(text);
}

Normalizer::Normalizer(const std::optional<JsonValue>& field) {
    if (!field || field->is_null()) return;
    for (const JsonValue& part : parts_of_sequence(*field, "normalizers")) read(part);
}

void Normalizer::read(const JsonValue& part) {
    const std::string_view type = expect_type(part, {"NFC", "Prepend", "Replace"});
    if (type == "NFC") {
        steps_.push_back({Step::Type::nfc, "", ""});
    } else if (type == "Prepend") {
        steps_.push_back({Step::Type::prepend, "", std::string(part["prepend"].string())});
    } else {
        const JsonValue from = part["pattern"]["String"];
        const JsonValue to = part["content"];
        if (from.string().empty()) from.refuse("an empty text", "a text to replace");
        if (to.string().empty()) to.refuse("an empty text", "a text");
        steps_.push_back({Step::Type::replace, std::string(from.string()), std::string(to.string())});
    }
}

std::string Normalizer::normalize(std::string_view text) const {
    std::string normalized(text);
    for (const Step& step : steps_) {
        if (step.type == Step::Type::nfc) {
            normalized = nfc(normalized);
        } else if (step.type == Step::Type::replace) {
            normalized = replace_all(normalized, step.from, step.to);
        } else if (!normalized.empty()) {
            normalized.insert(0, step.to);
        }
    }
    return normalized;
}

}  // namespace molkv
