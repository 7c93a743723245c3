// The C API: sessions and generations, cancellation, threads, texts, and the state after failures.
// Usage: test_api_sessions LIBRARY-OF-ONNXRUNTIME CONFORMANCE-FOLDER
#include <algorithm>
#include <atomic>
#include <chrono>
#include <cmath>
#include <thread>

#include "api_tools.h"

namespace test = molkv::test;
using test::check;
using test::continued;
using test::create_session;
using test::expect;
using test::greedy;
using test::Ids;
using test::ids_of;
using test::prompt;
using test::prompt_of;
using test::refuse;

namespace {

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
        std::cerr << "usage: test_api_sessions LIBRARY-OF-ONNXRUNTIME CONFORMANCE-FOLDER\n";
        return 2;
    }
    const auto* const base = test::load_onnxruntime(arguments[1]);
    const std::string bundles = std::string(arguments[2]) + "/bundles/";
    const auto model = test::open_model(base, bundles + "molkv");
    const auto expected = continued(create_session(model.get()).get(), prompt, 6);
    check_generation(model.get());
    check_pending(model.get(), 1e-3F);
    check_length(model.get());
    check_cancel(model.get(), expected);
    check_threads(model.get(), expected);
    check_text(test::open_model(base, bundles + "bytes").get(), model.get());
    return test::finish();
}
