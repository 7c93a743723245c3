// The tokens of a model's vocabulary and their ids.
#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "json.h"

namespace molkv {

// Tokens in the order of their ids. A place is the index of a token in this order: ids may have gaps, places have none.
class Vocabulary {
 public:
    // Read an object {token: id}. Throws if an id occurs twice.
    explicit Vocabulary(const JsonValue& object);

    [[nodiscard]] std::size_t size() const { return entries_.size(); }
    [[nodiscard]] std::optional<std::uint32_t> place(std::string_view token) const;
    [[nodiscard]] std::optional<std::uint32_t> place(std::int32_t id) const;
    [[nodiscard]] std::int32_t id(std::uint32_t place) const { return entries_[place].id; }
    [[nodiscard]] std::string_view token(std::uint32_t place) const;

 private:
    struct Entry {
        std::int32_t id;
        std::uint32_t start;  // of the token in tokens_
        std::uint32_t size;
    };
    void read(const JsonValue& object);
    void check_ids(const JsonValue& object) const;
    void fill_slots();

    std::string tokens_;  // all tokens, one after the other
    std::vector<Entry> entries_;
    std::vector<std::uint32_t> slots_;  // a hash table with linear probing: place + 1, or 0
};

}  // namespace molkv
