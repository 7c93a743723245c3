// Byte-pair encoding with a queue of merges; the order of merges is that of Hugging Face's tokenizers library.
#include "bpe.h"

#include <algorithm>
#include <limits>
#include <queue>
#include <string>
#include <tuple>

#include "json_fields.h"
#include "utf8.h"

namespace molkv {

namespace {

constexpr std::size_t none = std::numeric_limits<std::size_t>::max();

std::string byte_token(unsigned int byte) {
    constexpr std::string_view digits = "0123456789ABCDEF";
    return {'<', '0', 'x', digits[byte >> 4U], digits[byte & 15U], '>'};
}

// Check the parts of a model that change its results and that this driver does not support.
void check_model(const JsonValue& model) {
    if (model.find("type")) expect_type(model, {"BPE"});
    for (const std::string_view name : {"continuing_subword_prefix", "end_of_word_suffix"}) {
        const auto affix = model.find(name);
        if (affix && !affix->is_null() && !affix->string().empty()) affix->refuse("a text", "null or an empty text");
    }
    const auto dropout = model.find("dropout");
    if (dropout && !dropout->is_null() && dropout->number() != 0) dropout->refuse("a number", "null or 0");
}

std::pair<std::string_view, std::string_view> parts_of_merge(const JsonValue& merge) {
    if (merge.type() == JsonValue::Type::array) {
        const auto parts = merge.items();
        if (parts.size() != 2) merge.refuse(text(parts.size(), " parts"), "2 parts");
        return {parts[0].string(), parts[1].string()};
    }
    const std::string_view line = merge.string();
    const std::size_t space = line.find(' ');
    if (space == std::string_view::npos || line.find(' ', space + 1) != std::string_view::npos) {
        merge.refuse(text("\"", line, "\""), "two tokens with one space between them");
    }
    return {line.substr(0, space), line.substr(space + 1)};
}

}  // namespace

Bpe::Bpe(const JsonValue& model)
    : vocabulary_((check_model(model), model["vocab"])),
      ignore_merges_(flag(model, "ignore_merges", false)),
      fuse_unknown_(flag(model, "fuse_unk", false)) {
    const auto unknown = model.find("unk_token");
    if (unknown && !unknown->is_null()) unknown_ = unknown->string();
    if (flag(model, "byte_fallback", false)) {
        auto& places = byte_places_.emplace();
        for (unsigned int byte = 0; byte < places.size(); byte++) places[byte] = vocabulary_.place(byte_token(byte));
    }
    read_merges(model["merges"]);
}

void Bpe::read_merges(const JsonValue& list) {
    if (list.type() != JsonValue::Type::array) list.refuse("no list", "a list of merges");
    std::vector<std::tuple<std::uint32_t, std::uint32_t, std::uint32_t, std::uint32_t>>
        rows;  // left, right, rank, joined
    rows.reserve(list.size());
    std::string joined;
    std::uint32_t rank = 0;
    for (const JsonValue& merge : list.items()) {
        if (merge.type() == JsonValue::Type::string && merge.string().starts_with("#version")) continue;
        const auto [left, right] = parts_of_merge(merge);
        joined.assign(left).append(right);
        const auto left_place = vocabulary_.place(left);
        const auto right_place = vocabulary_.place(right);
        const auto joined_place = vocabulary_.place(joined);
        if (!left_place || !right_place || !joined_place) {
            const std::string_view absent = !left_place ? left : !right_place ? right : std::string_view(joined);
            merge.refuse(text("\"", absent, "\""), "a token of the vocabulary");
        }
        rows.emplace_back(*left_place, *right_place, rank++, *joined_place);
    }
    std::sort(rows.begin(), rows.end());
    first_merge_.assign(vocabulary_.size() + 1, 0);
    merges_.reserve(rows.size());
    for (std::size_t row = 0; row < rows.size(); row++) {
        const auto& [left, right, order, place] = rows[row];
        const bool is_repeated =
            row + 1 < rows.size() && std::get<0>(rows[row + 1]) == left && std::get<1>(rows[row + 1]) == right;
        if (is_repeated) continue;  // of a merge that occurs several times, the last one counts
        merges_.push_back({right, place, order});
        first_merge_[left + 1] = merges_.size();
    }
    for (std::size_t left = 1; left < first_merge_.size(); left++) {
        first_merge_[left] = std::max(first_merge_[left], first_merge_[left - 1]);
    }
}

const Bpe::Merge* Bpe::find_merge(std::uint32_t left, std::uint32_t right) const {
    const Merge* first = merges_.data() + first_merge_[left];
    const Merge* last = merges_.data() + first_merge_[left + 1];
    const Merge* found = std::lower_bound(first, last, right,
                                          [](const Merge& merge, std::uint32_t value) { return merge.right < value; });
    return found != last && found->right == right ? found : nullptr;
}

std::uint32_t Bpe::unknown_place() const {
    const auto place = vocabulary_.place(*unknown_);
    if (!place) {
        fail(Kind::bundle, "tokenizer.json: model.unk_token: found \"", *unknown_,
             "\", expected a token of the vocabulary, since a ", "text has a character without a token");
    }
    return *place;
}

bool Bpe::append_bytes(std::string_view character, std::vector<std::uint32_t>& places) const {
    if (!byte_places_) return false;
    const auto place = [&](char byte) { return (*byte_places_)[static_cast<unsigned char>(byte)]; };
    if (!std::all_of(character.begin(), character.end(), [&](char byte) { return place(byte).has_value(); })) {
        return false;
    }
    for (const char byte : character) places.push_back(*place(byte));
    return true;
}

// Return the tokens of the characters of a word. As in the library, bytes do not end a fused unknown token: the unknown
// token is added after them.
std::vector<std::uint32_t> Bpe::characters(std::string_view word) const {
    std::vector<std::uint32_t> places;
    places.reserve(word.size());
    bool is_unknown = false;  // whether an unknown token is due
    while (!word.empty()) {
        const std::string_view character = word.substr(0, first_character(word).size);
        word.remove_prefix(character.size());
        if (const auto place = vocabulary_.place(character)) {
            if (is_unknown) places.push_back(unknown_place());
            is_unknown = false;
            places.push_back(*place);
        } else if (!append_bytes(character, places) && unknown_) {
            const std::uint32_t unknown = unknown_place();
            if (is_unknown && !fuse_unknown_) places.push_back(unknown);
            is_unknown = true;
        }
    }
    if (is_unknown) places.push_back(unknown_place());
    return places;
}

// One token of a word, in a linked list.
struct Bpe::Symbol {
    std::uint32_t place;
    bool is_removed;
    std::size_t previous;
    std::size_t next;
};

// The merging of one word.
class Bpe::Merging {
 public:
    Merging(const Bpe& bpe, const std::vector<std::uint32_t>& places) : bpe_(bpe) {
        symbols_.reserve(places.size());
        for (std::size_t at = 0; at < places.size(); at++) {
            symbols_.push_back({places[at], false, at == 0 ? none : at - 1, at + 1 == places.size() ? none : at + 1});
        }
        for (std::size_t at = 0; at + 1 < symbols_.size(); at++) add_candidate(at);
        while (!queue_.empty()) {
            const Candidate best = queue_.top();
            queue_.pop();
            apply(best);
        }
    }

    void append_ids(std::vector<std::int32_t>& ids) const {
        for (const Symbol& symbol : symbols_) {
            if (!symbol.is_removed) ids.push_back(bpe_.vocabulary_.id(symbol.place));
        }
    }

 private:
    struct Candidate {
        std::uint32_t rank;
        std::uint32_t joined;
        std::size_t at;
        // The queue returns the largest: the lowest rank, and of equal ranks the first place.
        bool operator<(const Candidate& other) const { return std::tie(rank, at) > std::tie(other.rank, other.at); }
    };

    void add_candidate(std::size_t at) {
        const Merge* merge = bpe_.find_merge(symbols_[at].place, symbols_[symbols_[at].next].place);
        if (merge != nullptr) queue_.push({merge->rank, merge->joined, at});
    }

    void apply(const Candidate& best) {
        Symbol& left = symbols_[best.at];
        if (left.is_removed || left.next == none) return;
        Symbol& right = symbols_[left.next];
        const Merge* merge = bpe_.find_merge(left.place, right.place);
        if (merge == nullptr || merge->joined != best.joined) return;  // an earlier merge changed this pair
        left.place = best.joined;
        left.next = right.next;
        right.is_removed = true;
        if (left.next != none) symbols_[left.next].previous = best.at;
        if (left.previous != none) add_candidate(left.previous);
        if (left.next != none) add_candidate(best.at);
    }

    const Bpe& bpe_;
    std::vector<Symbol> symbols_;
    std::priority_queue<Candidate> queue_;
};

void Bpe::encode(std::string_view word, std::vector<std::int32_t>& ids) const {
    if (ignore_merges_ && !word.empty()) {
        if (const auto place = vocabulary_.place(word)) {
            ids.push_back(vocabulary_.id(*place));
            return;
        }
    }
    Merging(*this, characters(word)).append_ids(ids);
}

}  // namespace molkv
