// Each alternative of the regular expressions is one function that returns the end of its match.
#include "word_pattern.h"

#include <array>
#include <cstddef>
#include <cstdint>
#include <utility>

#include "unicode.h"
#include "utf8.h"

namespace molkv {

namespace {

constexpr std::array<std::pair<std::string_view, WordPattern>, 3> expressions = {{
    {R"('s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+)", WordPattern::gpt2},
    {R"((?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+)",
     WordPattern::llama3},
    {R"((?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+)",
     WordPattern::qwen2},
}};
constexpr std::array<std::string_view, 7> contractions = {"s", "t", "re", "ve", "m", "ll", "d"};
constexpr char32_t long_s = 0x17F;  // the only character outside ASCII whose simple case folding is in `contractions`

enum class Class : std::uint8_t { letter, number, space, newline, other, end };

struct Place {
    std::size_t start;  // in the text
    char32_t code;
    Class kind;
};

Class class_of(char32_t code) {
    if (code == '\r' || code == '\n') return Class::newline;
    if (is_letter(code)) return Class::letter;
    if (is_number(code)) return Class::number;
    return is_space(code) ? Class::space : Class::other;
}

char32_t fold(char32_t code) {
    if (code == long_s) return 's';
    return code >= 'A' && code <= 'Z' ? code - 'A' + 'a' : code;
}

// The characters of a text, and one more of class `end`. Positions are indices of characters. Each function returns the
// end of the match that begins at a position, or this position if there is none.
class Matcher {
 public:
    Matcher(WordPattern pattern, std::string_view text) : pattern_(pattern) {
        places_.reserve(text.size() + 1);
        for (std::size_t at = 0; at < text.size();) {
            const Character character = first_character(text.substr(at));
            places_.push_back({at, character.code, class_of(character.code)});
            at += character.size;
        }
        places_.push_back({text.size(), 0, Class::end});
    }

    [[nodiscard]] std::size_t size() const { return places_.size() - 1; }
    [[nodiscard]] std::size_t offset(std::size_t at) const { return places_[at].start; }

    [[nodiscard]] std::size_t word(std::size_t at) const {
        std::size_t end = contraction(at);
        if (end == at) end = letters(at);
        if (end == at) end = numbers(at);
        if (end == at) end = others(at);
        if (end == at) end = spaces(at);
        return end;
    }

 private:
    [[nodiscard]] bool is(std::size_t at, Class kind) const { return places_[at].kind == kind; }
    [[nodiscard]] bool is_white(std::size_t at) const { return is(at, Class::space) || is(at, Class::newline); }

    [[nodiscard]] std::size_t run(std::size_t at, Class kind) const {
        while (is(at, kind)) at++;
        return at;
    }

    // ' ?' before a class
    [[nodiscard]] std::size_t after_space(std::size_t at, Class kind) const {
        return places_[at].code == ' ' && is(at + 1, kind) ? at + 1 : at;
    }

    // 's|'t|'re|'ve|'m|'ll|'d
    [[nodiscard]] std::size_t contraction(std::size_t at) const {
        if (places_[at].code != '\'') return at;
        for (const std::string_view letters : contractions) {
            std::size_t next = at + 1;
            for (const char letter : letters) {
                const char32_t code = places_[next].code;
                if ((pattern_ == WordPattern::gpt2 ? code : fold(code)) != static_cast<unsigned char>(letter)) break;
                next++;
            }
            if (next == at + 1 + letters.size()) return next;
        }
        return at;
    }

    // ' ?\p{L}+' or '[^\r\n\p{L}\p{N}]?\p{L}+'
    [[nodiscard]] std::size_t letters(std::size_t at) const {
        std::size_t first = at;
        if (pattern_ == WordPattern::gpt2) {
            first = after_space(at, Class::letter);
        } else if ((is(at, Class::space) || is(at, Class::other)) && is(at + 1, Class::letter)) {
            first = at + 1;
        }
        return is(first, Class::letter) ? run(first, Class::letter) : at;
    }

    // ' ?\p{N}+', '\p{N}{1,3}' or '\p{N}'
    [[nodiscard]] std::size_t numbers(std::size_t at) const {
        if (pattern_ == WordPattern::gpt2) {
            const std::size_t first = after_space(at, Class::number);
            return is(first, Class::number) ? run(first, Class::number) : at;
        }
        const std::size_t most = at + (pattern_ == WordPattern::llama3 ? 3 : 1);
        while (at < most && is(at, Class::number)) at++;
        return at;
    }

    // ' ?[^\s\p{L}\p{N}]+', and '[\r\n]*' after it in the newer patterns
    [[nodiscard]] std::size_t others(std::size_t at) const {
        const std::size_t first = after_space(at, Class::other);
        if (!is(first, Class::other)) return at;
        const std::size_t end = run(first, Class::other);
        return pattern_ == WordPattern::gpt2 ? end : run(end, Class::newline);
    }

    // '\s*[\r\n]+' in the newer patterns; '\s+(?!\S)|\s+'
    [[nodiscard]] std::size_t spaces(std::size_t at) const {
        std::size_t end = at;
        std::size_t after_newline = at;
        while (is_white(end)) {
            end++;
            if (is(end - 1, Class::newline)) after_newline = end;
        }
        if (pattern_ != WordPattern::gpt2 && after_newline != at) return after_newline;
        return is(end, Class::end) || end == at + 1 ? end : end - 1;
    }

    WordPattern pattern_;
    std::vector<Place> places_;
};

}  // namespace

std::optional<WordPattern> find_word_pattern(std::string_view expression) {
    for (const auto& [text, pattern] : expressions) {
        if (text == expression) return pattern;
    }
    return std::nullopt;
}

std::vector<std::string_view> match_words(WordPattern pattern, std::string_view text) {
    const Matcher matcher(pattern, text);
    std::vector<std::string_view> words;
    for (std::size_t at = 0; at < matcher.size();) {
        const std::size_t end = matcher.word(at);
        words.push_back(text.substr(matcher.offset(at), matcher.offset(end) - matcher.offset(at)));
        at = end;
    }
    return words;
}

}  // namespace molkv
