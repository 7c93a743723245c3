// The steps of a normalizer.
#include "normalizer.h"

#include <algorithm>
#include <utility>

#include "json_fields.h"
#include "unicode.h"

namespace molkv {

namespace {

constexpr std::size_t most_growth = 64;
constexpr std::size_t nfc_growth = 3;          // U+1D160 has 4 bytes, and 12 bytes in NFC
constexpr std::size_t longest_prefix = 1'000;  // bytes

}  // namespace

std::string replace_all(std::string_view text, std::string_view from, std::string_view to) {
    std::string replaced;
    replaced.reserve(text.size());
    for (std::size_t at = text.find(from); at != std::string_view::npos; at = text.find(from)) {
        replaced.append(text.substr(0, at)).append(to);
        text.remove_prefix(at + from.size());
    }
    return replaced.append(text);
}

Replacement::Replacement(const JsonValue& part)
    : from(part["pattern"]["String"].string()), to(part["content"].string()) {
    if (from.empty()) part["pattern"]["String"].refuse("an empty text", "a text to replace");
    if (to.empty()) part["content"].refuse("an empty text", "a text");
}

void Growth::add(const JsonValue& step, std::size_t from, std::size_t to) {
    if (to > from) factor_ *= std::min((to + from - 1) / from, most_growth + 1);
    if (factor_ > most_growth) {
        step.refuse("steps that make a text too long", text("at most ", most_growth, " times the length"));
    }
}

Normalizer::Normalizer(const std::optional<JsonValue>& field) {
    if (!field || field->is_null()) return;
    Growth growth;
    for (const JsonValue& part : parts_of_sequence(*field, "normalizers")) read(part, growth);
}

void Normalizer::read(const JsonValue& part, Growth& growth) {
    const std::string_view type = expect_type(part, {"NFC", "Prepend", "Replace"});
    if (type == "NFC") {
        growth.add(part, 1, nfc_growth);
        steps_.push_back({Step::Type::nfc, "", ""});
    } else if (type == "Prepend") {
        const JsonValue added = part["prepend"];
        if (added.string().size() > longest_prefix) {
            added.refuse(text("a text of ", added.string().size(), " bytes"), text("at most ", longest_prefix));
        }
        steps_.push_back({Step::Type::prepend, "", std::string(added.string())});
    } else {
        const Replacement replacement(part);
        growth.add(part, replacement.from.size(), replacement.to.size());
        steps_.push_back({Step::Type::replace, replacement.from, replacement.to});
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
