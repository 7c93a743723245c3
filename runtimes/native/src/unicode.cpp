// The look-up of character classes, and the normalization form NFC (Unicode Standard Annex #15).
#include "unicode.h"

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <iterator>
#include <span>
#include <utility>
#include <vector>

#include "unicode_tables.h"
#include "utf8.h"

namespace molkv {

namespace {

// The Hangul syllables, which are computed (Unicode chapter 3.12).
constexpr char32_t syllables = 0xAC00;
constexpr char32_t leads = 0x1100;
constexpr char32_t vowels = 0x1161;
constexpr char32_t tails = 0x11A7;
constexpr char32_t lead_count = 19;
constexpr char32_t vowel_count = 21;
constexpr char32_t tail_count = 28;
constexpr char32_t syllable_count = lead_count * vowel_count * tail_count;

constexpr unsigned char first_byte_of_marks = 0xCC;  // characters below U+0300 are NFC and take no part in compositions

struct Mark {
    char32_t code;
    std::uint8_t combining_class;
};

// Return the range that holds a code point, or nothing.
template <typename Range>
const Range* find_range(std::span<const Range> ranges, char32_t code) {
    const auto after = std::upper_bound(ranges.begin(), ranges.end(), code,
                                        [](char32_t value, const Range& range) { return value < range.first; });
    if (after == ranges.begin()) return nullptr;
    const Range& range = *std::prev(after);
    return code <= range.last ? &range : nullptr;
}

bool contains(std::span<const tables::CodeRange> ranges, char32_t code) {
    return find_range(ranges, code) != nullptr;
}

std::uint8_t combining_class(char32_t code) {
    const auto* range = find_range(std::span<const tables::CombiningRange>(tables::combining_ranges), code);
    return range == nullptr ? std::uint8_t{0} : range->combining_class;
}

void append_decomposition(std::vector<Mark>& out, char32_t code) {
    if (code >= syllables && code < syllables + syllable_count) {
        const char32_t index = code - syllables;
        out.push_back({leads + index / (vowel_count * tail_count), 0});
        out.push_back({vowels + index % (vowel_count * tail_count) / tail_count, 0});
        if (index % tail_count != 0) out.push_back({tails + index % tail_count, 0});
        return;
    }
    const std::span table(tables::decompositions);
    const auto found =
        std::lower_bound(table.begin(), table.end(), code,
                         [](const tables::Decomposition& row, char32_t value) { return row.code < value; });
    if (found == table.end() || found->code != code) {
        out.push_back({code, combining_class(code)});
        return;
    }
    append_decomposition(out, found->first);
    if (found->second != 0) append_decomposition(out, found->second);
}

// Return the character that two characters compose, or 0.
char32_t composition(char32_t first, char32_t second) {
    if (first >= leads && first < leads + lead_count && second >= vowels && second < vowels + vowel_count) {
        return syllables + ((first - leads) * vowel_count + (second - vowels)) * tail_count;
    }
    const bool is_syllable = first >= syllables && first < syllables + syllable_count;
    if (is_syllable && (first - syllables) % tail_count == 0 && second > tails && second < tails + tail_count) {
        return first + (second - tails);
    }
    const std::span table(tables::compositions);
    const auto found = std::lower_bound(table.begin(), table.end(), std::pair(first, second),
                                        [](const tables::Composition& row, const std::pair<char32_t, char32_t>& pair) {
                                            return std::pair(row.first, row.second) < pair;
                                        });
    const bool exists = found != table.end() && found->first == first && found->second == second;
    return exists ? found->code : 0;
}

// Sort each run of marks by combining class.
void sort_marks(std::vector<Mark>& marks) {
    const auto is_base = [](const Mark& mark) { return mark.combining_class == 0; };
    for (auto first = marks.begin(); first != marks.end();) {
        first = std::find_if_not(first, marks.end(), is_base);
        const auto last = std::find_if(first, marks.end(), is_base);
        std::stable_sort(first, last,
                         [](const Mark& a, const Mark& b) { return a.combining_class < b.combining_class; });
        first = last;
    }
}

// Compose in place.
void compose(std::vector<Mark>& marks) {
    std::size_t size = 0;
    std::size_t base = marks.size();  // the place of the latest character of class 0
    for (const Mark& mark : marks) {
        if (base < size) {
            const bool is_next = base + 1 == size;
            const bool is_free = is_next || marks[size - 1].combining_class < mark.combining_class;
            const char32_t joined = is_free ? composition(marks[base].code, mark.code) : 0;
            if (joined != 0) {
                marks[base].code = joined;
                continue;
            }
        }
        if (mark.combining_class == 0) base = size;
        marks[size++] = mark;
    }
    marks.resize(size);
}

}  // namespace

bool is_letter(char32_t code) {
    if (code < 0x80) return (code >= 'a' && code <= 'z') || (code >= 'A' && code <= 'Z');
    return contains(tables::letter_ranges, code);
}

bool is_number(char32_t code) {
    if (code < 0x80) return code >= '0' && code <= '9';
    return contains(tables::number_ranges, code);
}

bool is_space(char32_t code) {
    if (code < 0x80) return code == ' ' || (code >= '\t' && code <= '\r');
    return contains(tables::space_ranges, code);
}

bool is_word_character(char32_t code) {
    return contains(tables::word_ranges, code);
}

std::string nfc(std::string_view text) {
    const auto may_change = [](char byte) { return static_cast<unsigned char>(byte) >= first_byte_of_marks; };
    if (std::none_of(text.begin(), text.end(), may_change)) return std::string(text);
    std::vector<Mark> marks;
    marks.reserve(text.size());
    for (std::string_view rest = text; !rest.empty();) {
        const Character character = first_character(rest);
        append_decomposition(marks, character.code);
        rest.remove_prefix(character.size);
    }
    sort_marks(marks);
    compose(marks);
    std::string composed;
    composed.reserve(text.size());
    for (const Mark& mark : marks) append_utf8(composed, mark.code);
    return composed;
}

}  // namespace molkv
