// `molkv run`.
#include <algorithm>
#include <array>
#include <cerrno>
#include <chrono>
#include <fstream>
#include <iostream>
#include <optional>
#include <system_error>

#include "commands.h"
#include "errors.h"
#include "opened.h"
#include "output.h"

namespace tool {

namespace {

using Clock = std::chrono::steady_clock;

constexpr std::int64_t most_int32 = 2147483647;
constexpr std::int64_t default_new_tokens = 128;
constexpr std::size_t most_prompt_bytes = std::size_t{64} << 20U;

// The prompts of the arguments: texts, or lists of token ids.
struct Prompts {
    std::vector<std::string> texts;
    std::vector<std::vector<std::int32_t>> ids;

    [[nodiscard]] std::vector<molkv_prompt> list() const {
        std::vector<molkv_prompt> result;
        for (const auto& text : texts) result.push_back({text.data(), text.size(), nullptr, 0});
        for (const auto& each : ids) result.push_back({nullptr, 0, each.data(), each.size()});
        return result;
    }
};

std::string read_prompt(const std::string& path) {
    std::ifstream file;
    if (path != "-") file.open(path, std::ios::binary);
    std::istream& input = path == "-" ? std::cin : file;
    std::string content;
    std::array<char, 65536> block{};
    while (content.size() <= most_prompt_bytes && (input.read(block.data(), block.size()), input.gcount() > 0)) {
        content.append(block.data(), static_cast<std::size_t>(input.gcount()));
    }
    if (input.bad() || (path != "-" && !file.is_open())) {
        throw ToolError(path + ": cannot be read (" + std::generic_category().message(errno) +
                        "), expected a file with a prompt");
    }
    if (content.size() > most_prompt_bytes) throw ToolError(path + ": has more than 64 MiB, expected a prompt");
    return content;
}

Prompts prompts_of(const Arguments& arguments) {
    Prompts prompts = {arguments.all("--prompt"), arguments.id_lists("--prompt-ids")};
    for (const auto& path : arguments.all("--prompt-file")) prompts.texts.push_back(read_prompt(path));
    if (prompts.texts.empty() == prompts.ids.empty()) {
        throw UsageError("prompts: expected either --prompt and --prompt-file, or --prompt-ids, at least one");
    }
    return prompts;
}

// Change sampling parameters as the arguments say.
void apply_sampling(const Arguments& arguments, molkv_sampling& sampling) {
    sampling.temperature = arguments.number("--temperature", sampling.temperature);
    sampling.top_k = static_cast<std::int32_t>(arguments.integer("--top-k", 0, most_int32, sampling.top_k));
    sampling.top_p = arguments.number("--top-p", sampling.top_p);
    sampling.min_p = arguments.number("--min-p", sampling.min_p);
    sampling.repetition_penalty = arguments.number("--repetition-penalty", sampling.repetition_penalty);
    sampling.presence_penalty = arguments.number("--presence-penalty", sampling.presence_penalty);
    sampling.frequency_penalty = arguments.number("--frequency-penalty", sampling.frequency_penalty);
    sampling.seed = arguments.seed("--seed");
}

molkv_sampling sampling_of(const Arguments& arguments, const molkv_model* model) {
    molkv_sampling sampling = {};
    sampling.size = sizeof(sampling);
    check(molkv_sampling_defaults(model, &sampling));
    apply_sampling(arguments, sampling);
    return sampling;
}

// An impossible parameter is an error of the arguments, so it is found before the bundle is opened.
void check_sampling(const Arguments& arguments) {
    const auto sampling = sampling_of(arguments, nullptr);
    const float logit = 0;
    std::int32_t id = 0;
    if (molkv_sample(&sampling, &logit, 1, nullptr, 0, nullptr, 0, 0, &id) != MOLKV_OK) {
        throw UsageError(molkv_last_error());
    }
}

// The continuation of one prompt.
struct Result {
    std::string text;
    std::vector<std::int32_t> ids;
    const char* finish = "";
    double first_token_seconds = 0;
    double seconds = 0;
};

std::string list_of(const std::vector<std::int32_t>& ids, const char* separator) {
    std::string list;
    for (const auto id : ids) list += (list.empty() ? "" : separator) + std::to_string(id);
    return list;
}

std::string as_json(const Prompts& prompts, std::size_t index, std::size_t prompt_tokens, const Result& result) {
    std::string prompt;
    if (prompts.ids.empty()) {
        prompt = json_string(prompts.texts[index]);
    } else {
        prompt = "[" + list_of(prompts.ids[index], ", ") + "]";
    }
    return R"({"prompt": )" + prompt + R"(, "text": )" + json_string(result.text) + R"(, "tokens": [)" +
           list_of(result.ids, ", ") + R"(], "finish": ")" + result.finish + R"(", "timings": {"prompt_tokens": )" +
           std::to_string(prompt_tokens) + R"(, "new_tokens": )" + std::to_string(result.ids.size()) +
           R"(, "first_token_seconds": )" + json_number(result.first_token_seconds) + R"(, "seconds": )" +
           json_number(result.seconds) + "}}\n";
}

// One use of the command.
class Run {
 public:
    Run(const Arguments& arguments, Interrupts& interrupts)
        : arguments_(arguments),
          prompts_(prompts_of(arguments)),
          list_(prompts_.list()),
          results_(list_.size()),
          streams_(list_.size() == 1 && !arguments.has("--json")) {
        check_sampling(arguments);
        const auto max_new_tokens = arguments.integer("--max-new-tokens", 1, most_int32, default_new_tokens);
        const auto model = open_model(arguments);
        const WatchedSession session(model.get(), static_cast<std::int32_t>(list_.size()),
                                     max_length(model.get(), max_new_tokens), interrupts);
        generate(session.get(), sampling_of(arguments, model.get()), static_cast<std::int32_t>(max_new_tokens));
        print_results(session.get());
    }

 private:
    // Return the tokens that the longest text needs. The KV cache of the whole context can be larger than the memory.
    [[nodiscard]] std::int32_t max_length(const molkv_model* model, std::int64_t max_new_tokens) const {
        std::size_t longest = 0;
        for (const auto& prompt : list_) {
            std::size_t count = prompt.id_count;
            // An impossible text has no ids here. molkv_generate says what is wrong.
            if (prompt.text != nullptr) {
                molkv_tokenize(model, prompt.text, prompt.text_length, 1, nullptr, 0, &count);
            }
            longest = std::max(longest, count);
        }
        const std::int64_t context = info_of(model).context_length;
        return static_cast<std::int32_t>(std::min(context, static_cast<std::int64_t>(longest) + max_new_tokens));
    }

    void generate(molkv_session* session, const molkv_sampling& sampling, std::int32_t max_new_tokens) {
        const auto stop_texts = arguments_.all("--stop");
        std::vector<const char*> stop;
        stop.reserve(stop_texts.size());
        for (const auto& each : stop_texts) stop.push_back(each.c_str());
        molkv_generation_options options = {};
        options.size = sizeof(options);
        options.max_new_tokens = max_new_tokens;
        options.sampling = &sampling;
        options.stop = stop.data();
        options.stop_count = stop.size();
        options.without_text = prompts_.ids.empty() ? 0 : 1;
        const auto start = Clock::now();
        molkv_generation* created = nullptr;
        const auto started = molkv_generate(session, list_.data(), list_.size(), &options, &created);
        const std::string_view failure = molkv_last_error();
        if (started == MOLKV_ERROR_REQUEST && failure.starts_with("stop:")) throw UsageError(molkv_last_error());
        check(started);
        const std::unique_ptr<molkv_generation, decltype(&molkv_generation_free)> generation(created,
                                                                                             molkv_generation_free);
        if (streams_) print(prompts_.ids.empty() ? prompts_.texts[0] : "");
        molkv_token token = {};
        token.size = sizeof(token);
        while (true) {
            const auto status = molkv_generation_next(created, &token);
            check(status);
            if (status == MOLKV_END) break;
            add(token, std::chrono::duration<double>(Clock::now() - start).count());
        }
    }

    void add(const molkv_token& token, double seconds) {
        auto& result = results_[static_cast<std::size_t>(token.sequence)];
        const std::string_view piece(token.text_length > 0 ? token.text : "", token.text_length);
        if (result.ids.empty()) result.first_token_seconds = seconds;
        result.ids.push_back(token.id);
        result.text += piece;
        result.seconds = seconds;
        if (token.finish == MOLKV_FINISH_STOP) result.finish = "stop";
        if (token.finish == MOLKV_FINISH_LENGTH) result.finish = "length";
        if (!streams_) return;
        if (prompts_.ids.empty()) {
            print(piece);
        } else {
            print((result.ids.size() > 1 ? " " : "") + std::to_string(token.id));
        }
    }

    void print_results(const molkv_session* session) {
        if (streams_) print("\n");
        for (std::size_t i = 0; i < results_.size(); i++) {
            const auto& result = results_[i];
            const std::int32_t* ids = nullptr;
            std::size_t count = 0;
            check(molkv_session_ids(session, static_cast<std::int32_t>(i), &ids, &count));
            if (arguments_.has("--json")) print(as_json(prompts_, i, count - result.ids.size(), result));
            if (!streams_ && !arguments_.has("--json")) {
                const auto text = prompts_.ids.empty() ? prompts_.texts[i] + result.text : list_of(result.ids, " ");
                print("--- prompt " + std::to_string(i + 1) + "\n" + text + "\n");
            }
            if (arguments_.has("--verbose") || arguments_.has("-v")) {
                describe_speed(i, count - result.ids.size(), result);
            }
        }
    }

    static void describe_speed(std::size_t index, std::size_t prompt_tokens, const Result& result) {
        const double decode = result.seconds - result.first_token_seconds;
        std::cerr << "prompt " << index + 1 << ": " << prompt_tokens << " tokens, first token after "
                  << json_number(result.first_token_seconds) << " s; " << result.ids.size() << " new tokens";
        if (decode > 0) {
            std::cerr << ", decode " << json_number(static_cast<double>(result.ids.size() - 1) / decode) << " tokens/s";
        }
        std::cerr << "\n";
    }

    const Arguments& arguments_;
    Prompts prompts_;
    std::vector<molkv_prompt> list_;
    std::vector<Result> results_;
    bool streams_;  // whether the text is written as it grows
};

int run(const Arguments& arguments, Interrupts& interrupts) {
    const Run done(arguments, interrupts);
    return 0;
}

std::vector<Option> options() {
    return with_model_options({
        {"--prompt", "TEXT", "text to continue; can be repeated: all prompts run as one batch"},
        {"--prompt-file", "FILE", "file whose whole content is a prompt, - for standard input; can be repeated"},
        {"--prompt-ids", "LIST", "token ids such as 1,2,3, for a bundle without tokenizer; prints token ids"},
        {"--max-new-tokens", "N", "largest number of new tokens (default 128)"},
        {"--temperature", "NUMBER", "0: the likeliest token; default of this and of the next options: the bundle's"},
        {"--top-k", "N", "keep the N likeliest tokens; 0: all"},
        {"--top-p", "NUMBER", "keep the likeliest tokens up to this share of the probability; 1: all"},
        {"--min-p", "NUMBER", "keep tokens of at least this share of the largest probability; 0: all"},
        {"--repetition-penalty", "NUMBER", "above 1: tokens that occurred before are less likely"},
        {"--presence-penalty", "NUMBER", "subtract from the logits of tokens that were generated"},
        {"--frequency-penalty", "NUMBER", "subtract for each time that a token was generated"},
        {"--seed", "N", "seed of the random numbers (default 0)"},
        {"--stop", "TEXT", "end the text before this text; can be repeated"},
        {"--json", "", "print one JSON object for each prompt, on a line, when all texts are complete"},
    });
}

}  // namespace

Command run_command() {
    return {{"run", "Generate text, which is written to standard output as it grows.",
             "  molkv run stdlib-mini.bundle --prompt 'def '\n"
             "  molkv run stdlib-mini.bundle --prompt 'import ' --prompt 'class ' --temperature 0.8 --top-p 0.95\n"
             "  molkv run stdlib-mini.bundle --prompt-file - --stop 'class ' --json < module.py\n"
             "  molkv run my.bundle --prompt 'def ' --provider xnnpack --require-provider -v\n",
             options()},
            run};
}

}  // namespace tool
