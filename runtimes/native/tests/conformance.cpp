// Runs runtimes/conformance (its README.md describes the cases) with the C API.
// Usage: conformance LIBRARY-OF-ONNXRUNTIME CONFORMANCE-FOLDER [PART-OF-A-NAME]
#include <iostream>

#include "conformance_support.h"

using namespace molkv::test;
using molkv::Json;
using molkv::JsonValue;
using molkv::Kind;
using molkv::text;

namespace {

// The cases, and the models of their bundles, which are opened when they are first used.
class Suite {
 public:
    Suite(const OrtApiBase* onnxruntime, const fs::path& folder)
        : onnxruntime_(onnxruntime),
          folder_(folder),
          json_(read_file(folder / "cases.json"), (folder / "cases.json").string(), Kind::request) {
        static_cast<void>(json_.root()["version"].integer(2, 2));
    }

    // Run the cases whose names contain a text. Return the exit code.
    int run(std::string_view part) {
        int passed = 0;
        int skipped = 0;
        int count = 0;
        for (const auto& item : json_.root()["cases"].items()) {
            const auto name = item["name"].string();
            if (name.find(part) == std::string_view::npos) continue;
            count++;
            if (const std::string why = reason_to_skip(item); !why.empty()) {
                skipped++;
                std::cout << "skip " << name << ": " << why << std::endl;
                continue;
            }
            try {
                run_case(item);
                passed++;
                std::cout << "ok " << name << std::endl;
            } catch (const std::exception& error) {
                std::cout << "FAIL " << name << ": " << error.what() << std::endl;
            }
        }
        std::cout << passed << " of " << count << " cases passed, " << skipped << " skipped; "
                  << tokens_ - compared_tokens_ << " of " << tokens_ << " tokens not compared" << std::endl;
        return passed + skipped == count && passed > 0 ? 0 : 1;
    }

 private:
    static std::string reason_to_skip(const JsonValue& item) {
        if (item["kind"].string() == "chat") return "this driver has no template engine";
        if (item.find("lookup")) return "this driver has no prompt lookup";
        return "";
    }

    void run_case(const JsonValue& item) {
        using Run = void (Suite::*)(const JsonValue&);
        static const std::map<std::string_view, Run> kinds = {
            {"golden", &Suite::golden},   {"tokens", &Suite::tokens},   {"text", &Suite::stream_text},
            {"refused", &Suite::refused}, {"damage", &Suite::damage},   {"sequences", &Suite::sequences},
            {"calls", &Suite::calls},     {"session", &Suite::session}, {"session-refused", &Suite::session_refused}};
        (this->*kinds.at(item["kind"].string()))(item);
    }

    [[nodiscard]] fs::path bundle(const JsonValue& item) const { return folder_ / "bundles" / item["bundle"].string(); }
    molkv_model* model(const JsonValue& item) {
        auto& model = models_[std::string(item["bundle"].string())];
        if (!model) model = open_model(onnxruntime_, bundle(item).string());
        return model.get();
    }
    [[nodiscard]] double limit(const JsonValue& item) const {
        return json_.root()["limits"][item["bundle"].string()].number();
    }
    void count_tokens(const JsonValue& expected) {
        tokens_ += static_cast<std::int64_t>(expected["ids"].size());
        compared_tokens_ += expected["compared"].integer(0, INT32_MAX);
    }

    static std::vector<Result> stream(molkv_model* model, const JsonValue& item, std::int64_t max_new_tokens,
                                      bool end_ids) {
        const Options options(item, max_new_tokens, end_ids);
        std::vector<Ids> ids;
        for (const auto& prompt : item["prompts"].items()) ids.push_back(ids_of_json(prompt));
        std::vector<molkv_prompt> prompts;
        for (const auto& each : ids) prompts.push_back(prompt_of(each));
        const auto session = create_session(model, static_cast<std::int32_t>(prompts.size()));
        return continued(session.get(), prompts, options);
    }
    static std::vector<Result> stream(molkv_model* model, const JsonValue& item) {
        return stream(model, item, item["max_new_tokens"].integer(INT32_MIN, INT32_MAX), false);
    }

    void golden(const JsonValue& item) {
        const char* report = nullptr;
        check(molkv_selftest(model(item), &report));
        if (report == nullptr || *report == '\0') wrong("the self-test has no report");
    }

    void compare_all(molkv_model* model, const JsonValue& item, double limit) {
        const auto found = stream(model, item);
        const auto expected = item["expected"].items();
        if (found.size() != expected.size()) wrong("found ", found.size(), " results");
        for (std::size_t i = 0; i < found.size(); i++) {
            count_tokens(expected[i]);
            compare(found[i], expected[i], text("sequence ", i));
            if (item.find("logprobs")) compare_logprobs(found[i], expected[i], 2 * limit);
        }
    }

    void tokens(const JsonValue& item) { compare_all(model(item), item, limit(item)); }

    void calls(const JsonValue& item) {
        const auto own = open_model(onnxruntime_, bundle(item).string());
        for (const auto& call : item["calls"].items()) compare_all(own.get(), call, limit(item));
    }

    void stream_text(const JsonValue& item) {
        const auto prompt = item["prompt"].string();
        Ids ids(prompt.size() + 16);
        std::size_t count = 0;
        check(molkv_tokenize(model(item), prompt.data(), prompt.size(), 1, ids.data(), ids.size(), &count));
        ids.resize(count);
        const auto expected_ids = ids_of_json(item["prompt_ids"]);
        if (ids != expected_ids) wrong("found the prompt ", show(ids), ", expected ", show(expected_ids));

        const auto& expected = item["expected"];
        const Options options(item, item["max_new_tokens"].integer(1, INT32_MAX), true);
        const auto own = create_session(model(item));
        const auto found = continued(own.get(), {{prompt.data(), prompt.size(), nullptr, 0}}, options)[0];
        count_tokens(expected);
        compare(found, expected, "the text");
        if (expected["ids"].size() > static_cast<std::size_t>(expected["compared"].integer(0, INT32_MAX))) return;
        std::vector<std::string> pieces;
        for (const auto& piece : expected["pieces"].items()) pieces.emplace_back(piece.string());
        if (found.pieces == pieces) return;
        std::string all;
        for (const auto& piece : found.pieces) all += text("'", piece, "' ");
        wrong("found the pieces ", all);
    }

    void refused(const JsonValue& item) {
        expect_error(item, [&] {
            if (const auto prompt = item.find("text")) {
                const Options options(item, 1, true);
                const auto own = create_session(model(item));
                continued(own.get(), {{prompt->string().data(), prompt->string().size(), nullptr, 0}}, options);
            } else {
                stream(model(item), item);
            }
        });
    }

    void damage(const JsonValue& item) {
        const TemporaryFolder place;
        const auto copy = place / "bundle";
        fs::copy(bundle(item), copy);
        for (const auto& patch : item["patches"].items()) {
            apply_patch(copy / patch["file"].string(), patch, folder_ / "bundles");
        }
        expect_error(item, [&] { stream(open_model(onnxruntime_, copy.string()).get(), item, 3, true); });
    }

    void sequences(const JsonValue& item) {
        const auto batch_size = static_cast<std::int32_t>(item["batch_size"].integer(1, INT32_MAX));
        const auto own = create_session(model(item), batch_size);
        const auto size = static_cast<std::size_t>(info_of(model(item)).vocab_size);
        for (const auto& step : item["steps"].items()) {
            if (step.find("error")) {
                const auto before = texts(own.get(), batch_size);
                expect_error(step, [&] { run_step(own.get(), step); });
                if (texts(own.get(), batch_size) != before) wrong(step.path(), ": an error changed the session");
                continue;
            }
            const float* logits = run_step(own.get(), step);
            std::vector<JsonValue> expected;
            if (const auto logit = step.find("logit")) expected.push_back(*logit);
            if (const auto all = step.find("logits")) expected = all->items();
            for (std::size_t row = 0; row < expected.size(); row++) {
                if (expected[row].is_null()) continue;
                const auto pair = expected[row].items();
                const float found = logits[row * size + static_cast<std::size_t>(pair[0].integer(0, INT32_MAX))];
                if (std::abs(static_cast<double>(found) - pair[1].number()) <= limit(item)) continue;
                wrong(step.path(), ": found the logit ", found, ", expected ", pair[1].number());
            }
        }
    }

    static std::vector<Ids> texts(const molkv_session* session, std::int32_t batch_size) {
        std::vector<Ids> all;
        for (std::int32_t i = 0; i < batch_size; i++) all.push_back(ids_of(session, i));
        return all;
    }

    // Run a step of kind `sequences`; return the logits, if there are any.
    static const float* run_step(molkv_session* session, const JsonValue& step) {
        const auto kind = step["do"].string();
        const auto number = [&step](std::string_view name) {
            return static_cast<std::int32_t>(step[name].integer(INT32_MIN, INT32_MAX));
        };
        const float* logits = nullptr;
        if (kind == "prefill") {
            const auto ids = ids_of_json(step["ids"]);
            check(molkv_session_prefill(session, number("sequence"), ids.data(), ids.size(), &logits));
        } else if (kind == "decode") {
            const auto ids = ids_of_json(step["ids"]);
            std::vector<std::uint8_t> active;
            for (const auto& each : step["active"].items()) active.push_back(each.boolean() ? 1 : 0);
            check(molkv_session_decode(session, ids.data(), active.data(), &logits));
        } else if (kind == "rewind") {
            check(molkv_session_rewind(session, number("sequence"), number("length")));
        } else if (kind == "fork") {
            std::int32_t copy = -1;
            check(molkv_session_fork(session, number("sequence"), &copy));
            if (copy != number("copy")) wrong(step.path(), ": found the copy ", copy);
        } else {
            wrong(step.path(), ": unknown step ", kind);
        }
        return logits;
    }

    void session(const JsonValue& item) {
        const TemporaryFolder place;
        const auto ids = ids_of_json(item["ids"]);
        const auto then = ids_of_json(item["then"]);
        const auto saved = place / "own.safetensors";
        for (const auto& path : {folder_ / "sessions" / item["session"].string(), saved}) {
            const auto own = create_session(model(item));
            check(molkv_session_restore(own.get(), 0, path.c_str()));
            if (ids_of(own.get()) != ids) wrong("the session has the ids ", show(ids_of(own.get())));
            const Options options(item, item["max_new_tokens"].integer(1, INT32_MAX), false);
            const auto found = continued(own.get(), {prompt_of(then)}, options)[0];
            count_tokens(item["expected"]);
            compare(found, item["expected"], path.filename().string());
            compare_logprobs(found, item["expected"], 2 * limit(item));
            check(molkv_session_rewind(own.get(), 0, static_cast<std::int32_t>(ids.size())));
            check(molkv_session_save(own.get(), 0, saved.c_str()));
        }
    }

    void session_refused(const JsonValue& item) {
        const TemporaryFolder place;
        const auto copy = place / std::string(item["session"].string());
        fs::copy_file(folder_ / "sessions" / item["session"].string(), copy);
        for (const auto& patch : item["patches"].items()) apply_patch(copy, patch, folder_);
        const auto own = create_session(model(item));
        expect_error(item, [&] { check(molkv_session_restore(own.get(), 0, copy.c_str())); });
        if (!ids_of(own.get()).empty()) wrong("the refused file changed the session");
    }

    const OrtApiBase* onnxruntime_;
    fs::path folder_;
    Json json_;
    std::map<std::string, ModelHandle> models_;
    std::int64_t tokens_ = 0;
    std::int64_t compared_tokens_ = 0;
};

}  // namespace

int main(int count, char** arguments) {
    if (count != 3 && count != 4) {
        std::cerr << "usage: conformance LIBRARY-OF-ONNXRUNTIME CONFORMANCE-FOLDER [PART-OF-A-NAME]\n";
        return 2;
    }
    try {
        Suite suite(load_onnxruntime(arguments[1]), arguments[2]);
        return suite.run(count == 4 ? arguments[3] : "");
    } catch (const std::exception& error) {
        std::cerr << "error: " << error.what() << "\n";
        return 1;
    }
}
