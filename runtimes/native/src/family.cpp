// The list of the families.
#include "family.h"

#include <array>
#include <utility>

namespace molkv {

// Each is defined in the file of its family.
const Family& mole_family();
const Family& molkv_family();
const Family& gemma4_family();

namespace {

struct Entry {
    std::string_view model_type;
    const Family& (*family)();
};

constexpr std::array<Entry, 3> families = {
    {{"mole", mole_family}, {"molkv", molkv_family}, {"gemma4_text", gemma4_family}}};

}  // namespace

const Family* find_family(const std::string& model_type) {
    for (const Entry& entry : families) {
        if (entry.model_type == model_type) return &entry.family();
    }
    return nullptr;
}

std::string family_names() {
    std::string names;
    for (const Entry& entry : families) {
        const bool is_last = &entry == &families.back();
        names.append(names.empty() ? "" : is_last ? " or " : ", ").append(entry.model_type);
    }
    return names;
}

}  // namespace molkv
