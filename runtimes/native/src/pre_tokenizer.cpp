// The steps of a pre-tokenizer.
#include "pre_tokenizer.h"

#include <utility>

#include "byte_level.h"
#include "json_fields.h"
#include "normalizer.h"
#include "utf8.h"

namespace molkv {

namespace {

constexpr std::string_view pattern_names = "the regular expression of GPT-2, Llama 3 or Qwen 2";

// Split before each separator (Metaspace) or after each (Split with MergedWithPrevious).
void split_at(std::string_view text, std::string_view separator, bool is_before, std::vector<std::string>& words) {
    std::size_t start = 0;
    std::size_t from = 0;
    while (true) {
        const std::size_t found = text.find(separator, from);
        if (found == std::string_view::npos) break;
        from = found + separator.size();
        const std::size_t border = is_before ? found : from;
        if (border > start) words.emplace_back(text.substr(start, border - start));
        start = border;
    }
    if (start < text.size()) words.emplace_back(text.substr(start));
}

}  // namespace

Metaspace::Metaspace(const JsonValue& part)
    : replacement(part["replacement"].string()), split(flag(part, "split", true)) {
    if (replacement.empty() || first_character(replacement).size != replacement.size()) {
        part["replacement"].refuse(text("\"", replacement, "\""), "one character");
    }
    const auto field = part.find("prepend_scheme");
    const std::string_view name = field ? field->string() : "always";
    if (name == "always") {
        scheme = PrependScheme::always;
    } else if (name == "first") {
        scheme = PrependScheme::first;
    } else if (name == "never") {
        scheme = PrependScheme::never;
    } else {
        field->refuse(text("\"", name, "\""), "\"always\" or \"first\" or \"never\"");
    }
    if (!flag(part, "add_prefix_space", true) && scheme != PrependScheme::never) {
        part["add_prefix_space"].refuse("false", "the prepend_scheme \"never\" beside it");
    }
}

PreTokenizer::PreTokenizer(const std::optional<JsonValue>& field) {
    if (!field || field->is_null()) return;
    const auto parts = parts_of_sequence(*field, "pretokenizers");
    bool has_byte_level = false;
    for (const JsonValue& part : parts) {
        read(part);
        if (steps_.back().metaspace && parts.size() > 1) part.refuse("\"Metaspace\"", "no other step beside it");
        // Each such step makes a text up to twice as long.
        if (steps_.back().is_byte_level && has_byte_level) part.refuse("\"ByteLevel\" a second time", "it once");
        has_byte_level = has_byte_level || steps_.back().is_byte_level;
    }
}

void PreTokenizer::read(const JsonValue& part) {
    const std::string_view type = expect_type(part, {"ByteLevel", "Metaspace", "Split"});
    Step step;
    if (type == "ByteLevel") {
        step.is_byte_level = true;
        step.add_prefix_space = part["add_prefix_space"].boolean();
        if (flag(part, "use_regex", true)) step.pattern = WordPattern::gpt2;
    } else if (type == "Metaspace") {
        step.metaspace = Metaspace(part);
    } else {
        read_split(part, step);
    }
    steps_.push_back(std::move(step));
}

void PreTokenizer::read_split(const JsonValue& part, Step& step) {
    if (part["invert"].boolean()) part["invert"].refuse("true", "false");
    const JsonValue pattern = part["pattern"];
    if (const auto separator = pattern.find("String")) {
        if (separator->string().empty()) separator->refuse("an empty text", "a text");
        expect_text(part["behavior"], "MergedWithPrevious");
        step.separator = separator->string();
        return;
    }
    const JsonValue expression = pattern["Regex"];
    step.pattern = find_word_pattern(expression.string());
    if (!step.pattern) expression.refuse(text("\"", expression.string(), "\""), pattern_names);
    expect_text(part["behavior"], "Isolated");
}

std::vector<std::string> PreTokenizer::split(std::string text, bool is_first) const {
    std::vector<std::string> words;
    if (!text.empty()) words.push_back(std::move(text));
    for (const Step& step : steps_) {
        std::vector<std::string> found;
        for (std::string& word : words) apply(step, std::move(word), is_first, found);
        words = std::move(found);
    }
    return words;
}

void PreTokenizer::apply(const Step& step, std::string word, bool is_first, std::vector<std::string>& words) {
    if (step.metaspace) {
        const Metaspace& metaspace = *step.metaspace;
        word = replace_all(word, " ", metaspace.replacement);
        const bool adds =
            metaspace.scheme == PrependScheme::always || (metaspace.scheme == PrependScheme::first && is_first);
        if (adds && !word.starts_with(metaspace.replacement)) word.insert(0, metaspace.replacement);
        if (!metaspace.split) return words.push_back(std::move(word));
        return split_at(word, metaspace.replacement, true, words);
    }
    if (step.separator) return split_at(word, *step.separator, false, words);
    if (step.add_prefix_space && !word.starts_with(' ')) word.insert(0, " ");
    if (!step.pattern) {
        words.push_back(step.is_byte_level ? characters_of_bytes(word) : std::move(word));
        return;
    }
    for (const std::string_view match : match_words(*step.pattern, word)) {
        words.push_back(step.is_byte_level ? characters_of_bytes(match) : std::string(match));
    }
}

}  // namespace molkv
