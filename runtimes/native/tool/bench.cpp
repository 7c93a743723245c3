// `molkv bench`.
#include <algorithm>
#include <chrono>
#include <sstream>

#include "commands.h"
#include "errors.h"
#include "opened.h"
#include "output.h"

namespace tool {

namespace {

using Clock = std::chrono::steady_clock;

constexpr std::int64_t most_tokens = 1 << 24;
constexpr std::int64_t most_runs = 1000;

double seconds_since(Clock::time_point start) {
    return std::chrono::duration<double>(Clock::now() - start).count();
}

double median(std::vector<double> numbers) {
    std::sort(numbers.begin(), numbers.end());
    const std::size_t half = numbers.size() / 2;
    return numbers.size() % 2 == 1 ? numbers[half] : (numbers[half - 1] + numbers[half]) / 2;
}

// Token ids that only depend on the vocabulary, so that runs can be compared.
class RandomIds {
 public:
    explicit RandomIds(std::int32_t vocab_size) : vocab_size_(static_cast<std::uint32_t>(vocab_size)) {}
    std::vector<std::int32_t> next(std::int64_t count) {
        std::vector<std::int32_t> ids(static_cast<std::size_t>(count));
        for (auto& id : ids) {
            state_ = 1664525U * state_ + 1013904223U;
            id = static_cast<std::int32_t>((std::uint64_t{state_} * vocab_size_) >> 32U);
        }
        return ids;
    }

 private:
    std::uint32_t vocab_size_;
    std::uint32_t state_ = 1;
};

struct Sizes {
    std::int64_t prompt;
    std::int64_t steps;
    std::int64_t batch_size;
};

struct Times {
    std::vector<double> prefill;  // seconds for the prompts of all sequences
    std::vector<double> decode;   // seconds for all steps
};

void run_once(molkv_session* session, const Sizes& sizes, RandomIds& random, Times* times) {
    const auto prompt = random.next(sizes.prompt);
    for (std::int32_t sequence = 0; sequence < sizes.batch_size; sequence++) {
        check(molkv_session_rewind(session, sequence, 0));
    }
    auto start = Clock::now();
    for (std::int32_t sequence = 0; sequence < sizes.batch_size; sequence++) {
        check(molkv_session_prefill(session, sequence, prompt.data(), prompt.size(), nullptr));
    }
    if (times != nullptr) times->prefill.push_back(seconds_since(start));
    const auto ids = random.next(sizes.steps * sizes.batch_size);
    start = Clock::now();
    for (std::int64_t step = 0; step < sizes.steps; step++) {
        check(molkv_session_decode(session, ids.data() + step * sizes.batch_size, nullptr, nullptr));
    }
    if (times != nullptr) times->decode.push_back(seconds_since(start));
}

void print_results(const Sizes& sizes, double open_seconds, const Times& times) {
    const double prefill = median(times.prefill);
    const double decode = median(times.decode);
    const auto prompts = static_cast<double>(sizes.prompt * sizes.batch_size);
    const auto steps = static_cast<double>(sizes.steps * sizes.batch_size);
    std::ostringstream text;
    text.imbue(std::locale::classic());
    text << "open     " << json_number(open_seconds) << " s\n"
         << "prefill  " << json_number(prompts / prefill) << " tokens/s\n"
         << "decode   " << json_number(steps / decode) << " tokens/s\n"
         << "first    " << json_number(prefill) << " s from the start of the prompt to its logits\n"
         << R"({"prompt_tokens": )" << sizes.prompt << R"(, "steps": )" << sizes.steps << R"(, "batch_size": )"
         << sizes.batch_size << R"(, "open_seconds": )" << json_number(open_seconds) << R"(, "first_token_seconds": )"
         << json_number(prefill) << R"(, "prefill_tokens_per_second": )" << json_number(prompts / prefill)
         << R"(, "decode_tokens_per_second": )" << json_number(steps / decode) << "}\n";
    print(text.str());
}

int run(const Arguments& arguments, Interrupts& interrupts) {
    const Sizes sizes = {arguments.integer("--prompt-tokens", 1, most_tokens, 128),
                         arguments.integer("--steps", 1, most_tokens, 64),
                         arguments.integer("--batch-size", 1, 4096, 1)};
    const auto runs = arguments.integer("--runs", 1, most_runs, 3);
    const auto start = Clock::now();
    const auto model = open_model(arguments);
    const double open_seconds = seconds_since(start);
    const WatchedSession session(model.get(), static_cast<std::int32_t>(sizes.batch_size),
                                 static_cast<std::int32_t>(sizes.prompt + sizes.steps), interrupts);
    RandomIds random(info_of(model.get()).vocab_size);
    Times times;
    run_once(session.get(), sizes, random, nullptr);  // warms up caches and threads
    for (std::int64_t i = 0; i < runs; i++) run_once(session.get(), sizes, random, &times);
    print_results(sizes, open_seconds, times);
    return 0;
}

}  // namespace

Command bench_command() {
    return {
        {"bench", "Measure prefill and decode on random token ids: medians of several runs. The last line is JSON.",
         "  molkv bench stdlib-mini.bundle\n"
         "  molkv bench my.bundle --prompt-tokens 512 --steps 128 --threads 2\n",
         with_model_options({{"--prompt-tokens", "N", "tokens of a prompt (default 128)"},
                             {"--steps", "N", "decode steps (default 64)"},
                             {"--batch-size", "N", "sequences that run together (default 1)"},
                             {"--runs", "N", "runs of prompt and steps (default 3), after one that does not count"}})},
        run};
}

}  // namespace tool
