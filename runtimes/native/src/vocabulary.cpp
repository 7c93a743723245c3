// A vocabulary in three arrays: 150,000 tokens need about 5 MB.
#include "vocabulary.h"

#include <algorithm>
#include <functional>
#include <limits>

namespace molkv {

Vocabulary::Vocabulary(const JsonValue& object) {
    read(object);
    const auto by_id = [](const Entry& a, const Entry& b) { return a.id < b.id; };
    std::sort(entries_.begin(), entries_.end(), by_id);
    check_ids(object);
    fill_slots();
}

std::optional<std::uint32_t> Vocabulary::place(std::string_view token) const {
    const std::size_t mask = slots_.size() - 1;
    for (std::size_t slot = std::hash<std::string_view>()(token) & mask; slots_[slot] != 0; slot = (slot + 1) & mask) {
        const std::uint32_t place = slots_[slot] - 1;
        if (this->token(place) == token) return place;
    }
    return std::nullopt;
}

std::optional<std::uint32_t> Vocabulary::place(std::int32_t id) const {
    const auto found = std::lower_bound(entries_.begin(), entries_.end(), id,
                                        [](const Entry& entry, std::int32_t value) { return entry.id < value; });
    if (found == entries_.end() || found->id != id) return std::nullopt;
    return static_cast<std::uint32_t>(found - entries_.begin());
}

std::string_view Vocabulary::token(std::uint32_t place) const {
    const Entry& entry = entries_[place];
    return std::string_view(tokens_).substr(entry.start, entry.size);
}

void Vocabulary::read(const JsonValue& object) {
    if (object.type() != JsonValue::Type::object) object.refuse("no object", "an object of tokens and ids");
    const std::vector<JsonValue> items = object.items();
    std::size_t bytes = 0;
    for (const JsonValue& item : items) bytes += item.key().size();
    if (bytes > std::numeric_limits<std::uint32_t>::max() / 2) object.refuse("more than 2 GiB", "a smaller vocabulary");
    tokens_.reserve(bytes);
    entries_.reserve(items.size());
    for (const JsonValue& item : items) {
        const auto id = static_cast<std::int32_t>(item.integer(0, std::numeric_limits<std::int32_t>::max()));
        entries_.push_back(
            {id, static_cast<std::uint32_t>(tokens_.size()), static_cast<std::uint32_t>(item.key().size())});
        tokens_ += item.key();
    }
}

void Vocabulary::check_ids(const JsonValue& object) const {
    const auto same_id = [](const Entry& a, const Entry& b) { return a.id == b.id; };
    const auto twice = std::adjacent_find(entries_.begin(), entries_.end(), same_id);
    if (twice != entries_.end()) object.refuse(text("the id ", twice->id, " a second time"), "each id once");
}

void Vocabulary::fill_slots() {
    std::size_t count = 4;
    while (count < entries_.size() * 2) count *= 2;
    slots_.assign(count, 0);
    for (std::uint32_t place = 0; place < entries_.size(); place++) {
        std::size_t slot = std::hash<std::string_view>()(token(place)) & (count - 1);
        while (slots_[slot] != 0) slot = (slot + 1) & (count - 1);
        slots_[slot] = place + 1;
    }
}

}  // namespace molkv
