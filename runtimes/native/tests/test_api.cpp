// The C API: wrong arguments, sizes of structs, lifetimes, cancellation, threads, and the state after failures.
// Usage: test_api LIBRARY-OF-ONNXRUNTIME CONFORMANCE-FOLDER
#include <fcntl.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cstddef>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <map>
#include <sstream>
#include <thread>

#include "check.h"
#include "handles.h"

namespace fs = std::filesystem;
namespace test = molkv::test;
using Ids = std::vector<std::int32_t>;
using test::check;
using test::create_session;
using test::ids_of;
using test::prompt_of;

namespace {

const Ids prompt = {3, 1, 4, 1, 5, 9, 2, 6};

void expect(molkv_status found, molkv_status expected, std::string_view part, std::string_view what) {
    const std::string message = molkv_last_error();
    test::equal(found, expected, what);
    test::that(message.find(part) != std::string::npos, molkv::text(what, ": the message lacks ", part, ": ", message));
}

void refuse(molkv_status found, std::string_view part, std::string_view what) {
    expect(found, MOLKV_ERROR_REQUEST, part, what);
}

molkv_generation_options greedy(std::int32_t max_new_tokens) {
    static const std::int32_t no_id = -1;
    molkv_generation_options options = {};
    options.size = sizeof(options);
    options.max_new_tokens = max_new_tokens;
    options.stop_ids = &no_id;
    return options;
}

Ids continued(molkv_session* session, const Ids& ids, std::int32_t max_new_tokens) {
    const auto generation = test::generate(session, {prompt_of(ids)}, greedy(max_new_tokens));
    Ids found;
    molkv_token token;
    while (test::next_token(generation.get(), token)) found.push_back(token.id);
    return found;
}

void check_null(molkv_model* model, molkv_session* session) {
    const std::string_view null = "found NULL";
    molkv_model* opened = nullptr;
    molkv_session* created = nullptr;
    molkv_generation* generation = nullptr;
    const std::int32_t* ids = nullptr;
    std::size_t count = 0;
    std::int32_t id = 0;
    molkv_token token = {};
    token.size = sizeof(token);
    molkv_model_options options = {};
    options.size = sizeof(options);
    options.path = "x";
    refuse(molkv_model_open(nullptr, &opened), null, "options NULL");
    refuse(molkv_model_open(&options, nullptr), null, "model NULL");
    refuse(molkv_model_open(&options, &opened), "onnxruntime: found NULL", "onnxruntime NULL");
    test::that(opened == nullptr, "a failed call does not change its output");
    refuse(molkv_model_get_info(model, nullptr), null, "info NULL");
    refuse(molkv_selftest(nullptr, nullptr), null, "selftest of NULL");
    refuse(molkv_session_create(nullptr, nullptr, &created), null, "session of NULL");
    refuse(molkv_session_create(model, nullptr, nullptr), null, "session to NULL");
    refuse(molkv_session_ids(session, 0, nullptr, &count), null, "ids NULL");
    refuse(molkv_session_ids(nullptr, 0, &ids, &count), null, "session NULL");
    refuse(molkv_session_prefill(session, 0, nullptr, 3, nullptr), null, "prefill of NULL");
    refuse(molkv_session_prefill(nullptr, 0, prompt.data(), 3, nullptr), null, "prefill with NULL");
    refuse(molkv_session_decode(session, nullptr, nullptr, nullptr), null, "decode of NULL");
    refuse(molkv_session_rewind(nullptr, 0, 0), null, "rewind of NULL");
    refuse(molkv_session_fork(session, 0, nullptr), null, "fork to NULL");
    refuse(molkv_session_save(session, 0, nullptr), null, "save to NULL");
    refuse(molkv_session_restore(session, 0, nullptr), null, "restore from NULL");
    refuse(molkv_sample(nullptr, nullptr, 1, nullptr, 0, nullptr, 0, 0, &id), null, "sample of NULL");
    refuse(molkv_generate(session, nullptr, 1, nullptr, &generation), null, "prompts NULL");
    refuse(molkv_generation_next(nullptr, &token), null, "next of NULL");
    refuse(molkv_tokenize(nullptr, "a", 1, 0, nullptr, 0, &count), null, "tokenize with NULL");
    molkv_model_close(nullptr);
    molkv_session_free(nullptr);
    molkv_session_cancel(nullptr);
    molkv_generation_free(nullptr);
}

void check_sizes(molkv_model* model, molkv_session* session) {
    molkv_model_info info = {};
    refuse(molkv_model_get_info(model, &info), "size: found 0", "info of size 0");
    molkv_session_options session_options = {};
    molkv_session* created = nullptr;
    refuse(molkv_session_create(model, &session_options, &created), "size: found 0", "session options of size 0");
    molkv_sampling sampling = {};
    refuse(molkv_sampling_defaults(nullptr, &sampling), "size: found 0", "sampling of size 0");

    // An older caller has fewer fields: the others are not written, and not read.
    info.size = offsetof(molkv_model_info, expert_window);
    info.expert_window = -7;
    check(molkv_model_get_info(model, &info));
    test::equal(info.vocab_size, 61, "a field of an older caller");
    test::equal(info.expert_window, -7, "a field that an older caller does not have");
    test::equal(info.size, offsetof(molkv_model_info, expert_window), "the size stays");
    session_options.size = offsetof(molkv_session_options, max_length);
    session_options.batch_size = 2;
    session_options.max_length = -5;
    check(molkv_session_create(model, &session_options, &created));
    molkv_session_free(created);

    auto options = greedy(4);
    options.size = offsetof(molkv_generation_options, with_logprobs);
    options.with_logprobs = 1;
    options.best_count = -1;
    auto generation = test::generate(session, {prompt_of(prompt)}, options);
    molkv_token token = {};
    token.size = offsetof(molkv_token, logprob);
    token.logprob = 5;
    check(molkv_generation_next(generation.get(), &token));
    test::equal(token.logprob, 5.0, "a field of a token that an older caller does not have");
    token.size = 0;
    refuse(molkv_generation_next(generation.get(), &token), "size: found 0", "a token of size 0");
    test::that(test::next_token(generation.get(), token), "a wrong struct does not end a generation");
    check(molkv_session_rewind(session, 0, 0));

    // A newer caller has more fields.
    struct Newer {
        molkv_model_info info;
        std::int64_t field;
    } newer = {};
    newer.info.size = sizeof(newer);
    newer.field = 9;
    check(molkv_model_get_info(model, &newer.info));
    test::equal(newer.field, 9, "a field of a newer caller");
}

void check_open(const OrtApiBase* base, const std::string& path) {
    const auto open = [](molkv_model_options options) {
        molkv_model* model = nullptr;
        const auto status = molkv_model_open(&options, &model);
        molkv_model_close(model);
        return status;
    };
    molkv_model_options options = {};
    options.size = sizeof(options);
    options.onnxruntime = base;
    refuse(open(options), "neither path nor open_file", "no path");
    options.path = "/no\nsuch/folder";
    expect(open(options), MOLKV_ERROR_BUNDLE, "\\x0a", "a folder that does not exist, on one line");
    options.path = path.c_str();
    options.threads = -1;
    refuse(open(options), "threads: found -1", "-1 threads");
    options.threads = 1;
    options.profile = "coreml";
    expect(open(options), MOLKV_ERROR_BUNDLE, "coreml", "a profile that the bundle does not have");
    options.profile = nullptr;
    options.provider = "nosuch";
    expect(open(options), MOLKV_ERROR_PROVIDER, "nosuch", "a provider that does not exist");
    options.provider = "cpu";
    const molkv_option nameless = {nullptr, "1"};
    options.provider_options = &nameless;
    options.provider_option_count = 1;
    refuse(open(options), "name: found NULL", "an option without a name");
    const molkv_option unknown = {"nosuch", "1"};
    options.provider_options = &unknown;
    refuse(open(options), "nosuch", "an option that does not exist");
}

// A damaged file does not keep the self-test from reporting the rest.
void check_damage(const OrtApiBase* base, const std::string& bundle) {
    const fs::path copy = fs::temp_directory_path() / molkv::text("molkv-test-damage-", getpid());
    fs::copy(bundle, copy);
    std::fstream(copy / "golden.safetensors", std::ios::binary | std::ios::in | std::ios::out).seekp(-1, std::ios::end)
        << '\x7f';
    const auto model = test::open_model(base, copy.string());
    const char* report = nullptr;
    expect(molkv_selftest(model.get(), &report), MOLKV_ERROR_BUNDLE, "golden.safetensors", "damaged golden vectors");
    test::that(report != nullptr && std::strncmp(report, "FAIL  ", 6) == 0, "the report of damaged golden vectors");
    fs::remove_all(copy);
}

// The files of a bundle one after the other in one file, as in an app's package.
struct Package {
    fs::path path;
    std::map<std::string, std::pair<std::int64_t, std::int64_t>> places;
    std::vector<int> descriptors;
    int calls = 0;
};

int open_packaged(void* context, const char* name, molkv_file* file) {
    auto& package = *static_cast<Package*>(context);
    package.calls++;
    const auto place = package.places.find(name);
    if (place == package.places.end()) return 1;
    *file = {open(package.path.c_str(), O_RDONLY | O_CLOEXEC), place->second.first, place->second.second};
    package.descriptors.push_back(file->fd);
    return 0;
}

Package make_package(const std::string& bundle, const fs::path& path) {
    Package package;
    package.path = path;
    std::ostringstream content;
    content << "13 bytes here";
    for (const auto& entry : fs::directory_iterator(bundle)) {
        package.places[entry.path().filename().string()] = {static_cast<std::int64_t>(content.tellp()),
                                                            static_cast<std::int64_t>(entry.file_size())};
        content << std::ifstream(entry.path(), std::ios::binary).rdbuf();
    }
    std::ofstream(path, std::ios::binary) << content.str();
    return package;
}

void check_callback(const OrtApiBase* base, const std::string& bundle, const Ids& expected) {
    const fs::path path = fs::temp_directory_path() / molkv::text("molkv-test-api-", getpid());
    auto package = make_package(bundle, path);
    molkv_model_options options = {};
    options.size = sizeof(options);
    options.onnxruntime = base;
    options.open_file = open_packaged;
    options.open_file_context = &package;
    molkv_model* model = nullptr;
    check(molkv_model_open(&options, &model));
    const int calls = package.calls;
    test::equal(static_cast<std::size_t>(calls), package.places.size(), "each file is opened once");
    const char* report = nullptr;
    check(molkv_selftest(model, &report));
    test::that(continued(create_session(model).get(), prompt, 6) == expected, "tokens of a bundle inside a file");
    test::equal(package.calls, calls, "calls of open_file after the model is open");
    molkv_model_close(model);
    package.places.erase("model.onnx");
    model = nullptr;
    expect(molkv_model_open(&options, &model), MOLKV_ERROR_BUNDLE, "model.onnx", "a file that open_file refuses");
    for (const int descriptor : package.descriptors) {
        test::that(fcntl(descriptor, F_GETFD) < 0, "a descriptor of open_file is closed");
    }
    fs::remove(path);
}

void check_generation(molkv_model* model) {
    const auto session = create_session(model);
    molkv_generation* generation = nullptr;
    const auto list = prompt_of(prompt);
    auto options = greedy(0);
    refuse(molkv_generate(session.get(), &list, 1, &options, &generation), "max_new_tokens: found 0", "no new tokens");
    options = greedy(3);
    options.best_count = 62;
    refuse(molkv_generate(session.get(), &list, 1, &options, &generation), "best_count: found 62", "too many tokens");
    refuse(molkv_generate(session.get(), &list, 2, nullptr, &generation), "2 prompts", "two prompts for a batch of 1");
    const molkv_prompt none = {};
    refuse(molkv_generate(session.get(), &none, 1, nullptr, &generation), "no tokens", "an empty prompt");
    const Ids outside = {1, 61};
    const auto wrong = prompt_of(outside);
    refuse(molkv_generate(session.get(), &wrong, 1, nullptr, &generation), "61", "an id outside the vocabulary");
    test::that(generation == nullptr && ids_of(session.get()).empty(), "a refused request changes nothing");

    // The text keeps what was returned, and goes on from there.
    const auto whole = continued(session.get(), prompt, 8);
    check(molkv_session_rewind(session.get(), 0, 0));
    {
        const auto first = test::generate(session.get(), {list}, greedy(8));
        test::that(ids_of(session.get()).empty(), "a prompt is run by the first token");
        molkv_token token;
        for (int i = 0; i < 3; i++) test::next_token(first.get(), token);
        test::equal(ids_of(session.get()).size(), prompt.size() + 3, "the text after three tokens");
        const auto second = test::generate(session.get(), {molkv_prompt{}}, greedy(5));
        expect(molkv_generation_next(first.get(), &token), MOLKV_ERROR_REQUEST, "later call", "an earlier generation");
        Ids found;
        while (test::next_token(second.get(), token)) found.push_back(token.id);
        test::that(found == Ids(whole.begin() + 3, whole.end()), "a prompt without tokens continues the text");
        test::equal(molkv_generation_next(second.get(), &token), MOLKV_END, "a generation that has ended");
    }
    auto text = prompt;
    text.insert(text.end(), whole.begin(), whole.end());
    test::that(ids_of(session.get()) == text, "the text has prompt and tokens");

    // Ids that were chosen but not run count in all operations.
    check(molkv_session_rewind(session.get(), 0, static_cast<std::int32_t>(prompt.size()) + 3));
    test::that(continued(session.get(), {}, 5) == Ids(whole.begin() + 3, whole.end()), "after a rewind");
    refuse(molkv_session_rewind(session.get(), 0, 100), "length: found 100", "a rewind to more tokens");
    refuse(molkv_session_rewind(session.get(), 1, 0), "sequence: found 1", "a sequence that does not exist");
    refuse(molkv_session_fork(session.get(), 0, &options.max_new_tokens), "free", "a fork without a free sequence");
}

void check_pending(molkv_model* model, float limit) {
    const auto size = static_cast<std::size_t>(test::info_of(model).vocab_size);
    const auto plain = create_session(model);
    const auto session = create_session(model, 2);
    const auto two = test::generate(session.get(), {prompt_of(prompt), prompt_of(prompt)}, greedy(3));
    molkv_token token;
    while (test::next_token(two.get(), token)) {
    }
    auto text = ids_of(session.get(), 1);
    test::equal(text.size(), prompt.size() + 3, "the text of a batch");
    const Ids ids = {7, 8};
    const std::vector<std::uint8_t> active = {0, 1};
    const float* found = nullptr;
    check(molkv_session_decode(session.get(), ids.data(), active.data(), &found));
    std::vector<float> decoded(found + size, found + 2 * size);
    text.push_back(8);
    test::that(ids_of(session.get(), 1) == text, "the text after a decode step");
    const float* expected = nullptr;
    check(molkv_session_prefill(plain.get(), 0, text.data(), text.size(), &expected));
    for (std::size_t i = 0; i < size; i++) {
        test::that(std::abs(decoded[i] - expected[i]) <= limit, "a logit after ids that were not run");
    }
    check(molkv_session_rewind(session.get(), 0, 0));
    std::int32_t copy = -1;
    check(molkv_session_fork(session.get(), 1, &copy));
    test::equal(copy, 0, "the copy");
    test::that(ids_of(session.get(), 0) == text, "the text of the copy");
}

void check_length(molkv_model* model) {
    const auto session = create_session(model, 1, 12);
    const auto generation = test::generate(session.get(), {prompt_of(prompt)}, greedy(100));
    molkv_token token;
    int count = 0;
    molkv_finish finish = MOLKV_FINISH_NONE;
    while (test::next_token(generation.get(), token)) {
        count++;
        finish = token.finish;
    }
    test::equal(count, 12 + 1 - 8, "tokens until the sequence is full");
    test::equal(finish, MOLKV_FINISH_LENGTH, "the end of a full sequence");
    const std::int32_t id = 1;
    refuse(molkv_session_prefill(session.get(), 0, &id, 1, nullptr), "at most 12", "a prompt for a full sequence");
    refuse(molkv_session_decode(session.get(), &id, nullptr, nullptr), "fewer than 12", "a step of a full sequence");
    test::equal(ids_of(session.get()).size(), 13U, "the full text");
}

// A cancellation that comes after the last call of a generation.
void check_late_cancel(molkv_model* model, const Ids& expected) {
    const auto session = create_session(model);
    molkv_token token;
    auto first = test::generate(session.get(), {prompt_of(prompt)}, greedy(6));
    test::next_token(first.get(), token);
    molkv_session_cancel(session.get());
    first.reset();
    check(molkv_session_rewind(session.get(), 0, 0));
    test::that(continued(session.get(), prompt, 6) == expected, "a generation that was freed takes its cancellation");

    check(molkv_session_rewind(session.get(), 0, 0));
    first = test::generate(session.get(), {prompt_of(prompt)}, greedy(6));
    const auto second = test::generate(session.get(), {prompt_of(prompt)}, greedy(6));
    molkv_session_cancel(session.get());
    first.reset();
    token.size = sizeof(token);
    expect(molkv_generation_next(second.get(), &token), MOLKV_CANCELLED, "", "a cancellation of a later generation");
}

void check_cancel(molkv_model* model, const Ids& expected) {
    const auto session = create_session(model);
    molkv_session_cancel(session.get());
    expect(molkv_session_prefill(session.get(), 0, prompt.data(), prompt.size(), nullptr), MOLKV_CANCELLED, "",
           "a call after molkv_session_cancel");
    test::that(ids_of(session.get()).empty(), "a cancelled prompt changes nothing");
    {
        const auto generation = test::generate(session.get(), {prompt_of(prompt)}, greedy(6));
        molkv_token token;
        test::next_token(generation.get(), token);
        molkv_session_cancel(session.get());
        token.size = sizeof(token);
        expect(molkv_generation_next(generation.get(), &token), MOLKV_CANCELLED, "", "a cancelled token");
        expect(molkv_generation_next(generation.get(), &token), MOLKV_CANCELLED, "", "the same error again");
    }
    check(molkv_session_rewind(session.get(), 0, 0));
    test::that(continued(session.get(), prompt, 6) == expected, "tokens after a cancelled call");

    check_late_cancel(model, expected);

    std::thread other([&] {
        std::this_thread::sleep_for(std::chrono::milliseconds(20));
        molkv_session_cancel(session.get());
    });
    const auto start = std::chrono::steady_clock::now();
    auto status = MOLKV_OK;
    while (status == MOLKV_OK && std::chrono::steady_clock::now() - start < std::chrono::seconds(60)) {
        check(molkv_session_rewind(session.get(), 0, 0));
        status = molkv_session_prefill(session.get(), 0, prompt.data(), prompt.size(), nullptr);
    }
    other.join();
    test::equal(status, MOLKV_CANCELLED, "a call that another thread cancels");
    test::that(ids_of(session.get()).empty(), "the text after the cancelled call");
    test::that(continued(session.get(), prompt, 6) == expected, "tokens after it");
}

void check_threads(molkv_model* model, const Ids& expected) {
    refuse(molkv_session_rewind(nullptr, 0, 0), "session: found NULL", "an error of this thread");
    std::atomic<int> right = 0;
    std::vector<std::thread> threads;
    for (int i = 0; i < 2; i++) {
        threads.emplace_back([&] {
            if (*molkv_last_error() == '\0') right++;
            for (int repeat = 0; repeat < 5; repeat++) {
                if (continued(create_session(model).get(), prompt, 6) == expected) right++;
            }
            if (molkv_session_save(nullptr, 0, nullptr) == MOLKV_ERROR_REQUEST) right++;
        });
    }
    for (auto& thread : threads) thread.join();
    test::equal(right.load(), 2 * 7, "right results of two threads");
    const std::string message = molkv_last_error();
    test::that(message.find("session: found NULL") == 0, "an error of another thread does not change the message here");
}

void check_text(molkv_model* model, molkv_model* without) {
    const std::string text = "the quick brown";
    std::size_t count = 0;
    check(molkv_tokenize(model, text.data(), text.size(), 1, nullptr, 0, &count));
    test::equal(count, 11U, "the number of ids");
    Ids ids(count);
    check(molkv_tokenize(model, text.data(), text.size(), 1, ids.data(), 3, &count));
    test::equal(count, 11U, "the number of ids beyond the capacity");
    test::that(ids[2] != 0 && ids[3] == 0, "only the capacity is written");
    check(molkv_tokenize(model, text.data(), text.size(), 1, ids.data(), ids.size(), &count));
    std::string back(100, '\0');
    std::size_t length = 0;
    check(molkv_detokenize(model, ids.data(), ids.size(), back.data(), back.size(), &length));
    test::equal(back.substr(0, length), text, "the text of the ids");
    check(molkv_detokenize(model, ids.data(), ids.size(), back.data(), 3, &length));
    test::equal(length, text.size(), "the length of the text beyond the capacity");
    refuse(molkv_tokenize(model, "\xff", 1, 1, nullptr, 0, &count), "UTF-8", "a text that is not UTF-8");
    const std::int32_t outside = 1 << 20;
    refuse(molkv_detokenize(model, &outside, 1, nullptr, 0, &length), "1048576", "an id outside the vocabulary");
    expect(molkv_tokenize(without, "a", 1, 1, nullptr, 0, &count), MOLKV_ERROR_BUNDLE, "tokenizer", "no tokenizer");

    const auto session = create_session(model);
    auto options = greedy(3);
    molkv_generation* generation = nullptr;
    const molkv_prompt wrong = {"\xff", 1, nullptr, 0};
    refuse(molkv_generate(session.get(), &wrong, 1, &options, &generation), "UTF-8", "a prompt that is not UTF-8");
    const molkv_prompt both = {"a", 1, ids.data(), 1};
    refuse(molkv_generate(session.get(), &both, 1, &options, &generation), "one of them", "a text and ids");
    molkv_token token;
    test::next_token(test::generate(session.get(), {prompt_of(ids)}, options).get(), token);
    test::that(token.text != nullptr, "a token has a text");
    options.without_text = 1;
    test::next_token(test::generate(session.get(), {prompt_of(ids)}, options).get(), token);
    test::that(token.text == nullptr && token.text_length == 0, "a token without text");
}

}  // namespace

int main(int count, char** arguments) {
    if (count != 3) {
        std::cerr << "usage: test_api LIBRARY-OF-ONNXRUNTIME CONFORMANCE-FOLDER\n";
        return 2;
    }
    const auto* const base = test::load_onnxruntime(arguments[1]);
    const std::string bundles = std::string(arguments[2]) + "/bundles/";
    test::that(std::strlen(molkv_version()) >= 5, "the version");
    const auto model = test::open_model(base, bundles + "molkv");
    const auto session = create_session(model.get());
    check_null(model.get(), session.get());
    check_sizes(model.get(), session.get());
    check_open(base, bundles + "molkv");
    const auto expected = continued(session.get(), prompt, 6);
    check_damage(base, bundles + "molkv");
    check_callback(base, bundles + "molkv", expected);
    check_generation(model.get());
    check_pending(model.get(), 1e-3F);
    check_length(model.get());
    check_cancel(model.get(), expected);
    check_threads(model.get(), expected);
    check_text(test::open_model(base, bundles + "bytes").get(), model.get());
    return test::finish();
}
