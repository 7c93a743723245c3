// The template of a single text ("single"); the template of two texts has no use here.
#include "post_processor.h"

#include <limits>
#include <string_view>

#include "json_fields.h"

namespace molkv {

namespace {

constexpr std::size_t most_ids = 1'000;  // special tokens of a text; a file could name long lists of ids many times

}  // namespace

PostProcessor::PostProcessor(const std::optional<JsonValue>& field) {
    if (!field || field->is_null()) return;
    bool has_template = false;
    for (const JsonValue& part : parts_of_sequence(*field, "processors")) {
        if (expect_type(part, {"ByteLevel", "TemplateProcessing"}) == "ByteLevel") continue;
        // The library applies the template of two texts after an earlier template.
        if (has_template) part.refuse("\"TemplateProcessing\" a second time", "it once");
        has_template = true;
        read_template(part);
    }
}

void PostProcessor::read_template(const JsonValue& part) {
    bool is_after = false;
    const JsonValue pieces = part["single"];
    if (pieces.size() > most_ids) pieces.refuse(text(pieces.size(), " parts"), text("at most ", most_ids));
    for (const JsonValue& piece : pieces.items()) {
        if (const auto sequence = piece.find("Sequence")) {
            expect_text((*sequence)["id"], "A");
            if (is_after) piece.refuse("the text a second time", "it once");
            is_after = true;
            continue;
        }
        const JsonValue special = part["special_tokens"][piece["SpecialToken"]["id"].string()];
        for (const JsonValue& id : special["ids"].items()) {
            const auto value = static_cast<std::int32_t>(id.integer(0, std::numeric_limits<std::int32_t>::max()));
            (is_after ? after_ : before_).push_back(value);
        }
        if (before_.size() + after_.size() > most_ids) {
            pieces.refuse(text(before_.size() + after_.size(), " ids"), text("at most ", most_ids));
        }
    }
    if (!is_after) pieces.refuse("a template without the text", "{\"Sequence\": {\"id\": \"A\"}} in it");
}

}  // namespace molkv
