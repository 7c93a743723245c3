// `molkv inspect`.
#include <sstream>

#include "commands.h"
#include "opened.h"
#include "output.h"

namespace tool {

namespace {

// The facts as pairs of a name and a value in JSON.
std::vector<std::pair<std::string, std::string>> facts(const molkv_model_info& info) {
    std::string end_ids;
    for (std::size_t i = 0; i < info.end_id_count; i++) {
        end_ids += (end_ids.empty() ? "" : ", ") + std::to_string(info.end_ids[i]);
    }
    return {{"model_type", json_string(info.model_type)},
            {"profile", json_string(info.profile)},
            {"dense_dtype", json_string(info.dense_dtype)},
            {"kv_dtype", json_string(info.kv_dtype)},
            {"experts_dtype", json_string(info.experts_dtype)},
            {"placements", json_string(info.placements)},
            {"vocab_size", std::to_string(info.vocab_size)},
            {"context_length", std::to_string(info.context_length)},
            {"expert_window", std::to_string(info.expert_window)},
            {"has_tokenizer", info.has_tokenizer != 0 ? "true" : "false"},
            {"dense_bytes", std::to_string(info.dense_bytes)},
            {"store_bytes", std::to_string(info.store_bytes)},
            {"record_bytes", std::to_string(info.record_bytes)},
            {"end_ids", "[" + end_ids + "]"}};
}

int run(const Arguments& arguments, Interrupts& /*interrupts*/) {
    const auto model = open_model(arguments);
    std::string text;
    for (const auto& [name, value] : facts(info_of(model.get()))) {
        if (arguments.has("--json")) {
            text.append(text.empty() ? "{" : ", ").append(json_string(name)).append(": ").append(value);
        } else {
            text.append(name).append(16 - name.size(), ' ').append(value).append("\n");
        }
    }
    print(arguments.has("--json") ? text + "}\n" : text);
    return 0;
}

}  // namespace

Command inspect_command() {
    return {{"inspect", "Show facts about a bundle: dtypes, sizes in bytes, and where its nodes run.",
             "  molkv inspect stdlib-mini.bundle\n"
             "  molkv inspect stdlib-mini.bundle --json\n",
             with_model_options({{"--json", "", "print one JSON object"}})},
            run};
}

}  // namespace tool
