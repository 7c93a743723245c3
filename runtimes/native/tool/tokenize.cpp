// `molkv tokenize`.
#include "commands.h"
#include "errors.h"
#include "opened.h"
#include "output.h"

namespace tool {

namespace {

std::string ids_of_text(const molkv_model* model, const std::string& text, bool add_special_tokens) {
    std::vector<std::int32_t> ids(text.size() + 16);
    std::size_t count = ids.size();
    do {
        ids.resize(count);
        check(molkv_tokenize(model, text.data(), text.size(), add_special_tokens ? 1 : 0, ids.data(), ids.size(),
                             &count));
    } while (count > ids.size());
    std::string line;
    for (std::size_t i = 0; i < count; i++) line += (i > 0 ? "," : "") + std::to_string(ids[i]);
    return line + "\n";
}

std::string text_of_ids(const molkv_model* model, const std::vector<std::int32_t>& ids) {
    std::size_t length = 0;
    check(molkv_detokenize(model, ids.data(), ids.size(), nullptr, 0, &length));
    std::string text(length, '\0');
    check(molkv_detokenize(model, ids.data(), ids.size(), text.data(), text.size(), &length));
    return text + "\n";
}

int run(const Arguments& arguments, Interrupts& /*interrupts*/) {
    const auto lists = arguments.id_lists("--ids");
    if (!arguments.has("--text") && lists.empty()) {
        throw UsageError("found no text, expected --text TEXT or --ids LIST");
    }
    const auto model = open_model(arguments);
    for (const auto& text : arguments.all("--text")) {
        print(ids_of_text(model.get(), text, !arguments.has("--no-special-tokens")));
    }
    for (const auto& ids : lists) print(text_of_ids(model.get(), ids));
    return 0;
}

}  // namespace

Command tokenize_command() {
    return {{"tokenize", "Convert texts to token ids, and token ids to text.",
             "  molkv tokenize stdlib-mini.bundle --text 'def '\n"
             "  molkv tokenize stdlib-mini.bundle --ids 305,223\n",
             with_model_options({{"--text", "TEXT", "text to convert to a line of token ids; can be repeated"},
                                 {"--no-special-tokens", "", "do not add the special tokens of the tokenizer"},
                                 {"--ids", "LIST", "token ids such as 1,2,3 to convert to text; can be repeated"}})},
            run};
}

}  // namespace tool
