// Sequences: the scripts of the conformance suite, chunks, short rings, full sequences, failures and cancellation.
// Usage: test_sequences LIBONNXRUNTIME CONFORMANCE_FOLDER
#include "sequence_tools.h"
#include "store.h"

using molkv::Kind;
using molkv::Model;
using molkv::Sequences;
using molkv::text;
namespace test = molkv::test;

namespace {

// Run one step of a script. Returns the logits, or nothing.
std::vector<float> run_step(Sequences& sequences, const molkv::JsonValue& step, const std::string& place) {
    const std::string_view what = step["do"].string();
    const auto number = [&](const char* name) { return static_cast<int>(step[name].integer(-1000, 1000000)); };
    if (what == "prefill") return test::copied(sequences.prefill(number("sequence"), test::ids_of(step["ids"])));
    if (what == "decode") {
        std::vector<std::uint8_t> active;
        for (const auto& goes : step["active"].items()) active.push_back(goes.boolean() ? 1 : 0);
        return test::copied(sequences.decode(test::ids_of(step["ids"]), active));
    }
    if (what == "rewind") sequences.rewind(number("sequence"), number("length"));
    if (what == "fork") {
        const int copy = sequences.fork(number("sequence"));
        if (const auto expected = step.find("copy"))
            test::equal(copy, expected->integer(0, 1000), place + ": the copy");
    }
    return {};
}

// Compare the logit of the likeliest token of each sequence.
void check_step(const Model& model, const std::vector<float>& logits, const molkv::JsonValue& step, double limit,
                const std::string& place) {
    std::vector<molkv::JsonValue> expected;
    if (const auto one = step.find("logit")) expected = {*one};
    if (const auto all = step.find("logits")) expected = all->items();
    for (std::size_t i = 0; i < expected.size(); i++) {
        if (expected[i].is_null()) continue;
        const auto id = static_cast<std::size_t>(expected[i].items()[0].integer(0, model.config().vocab_size - 1));
        const auto found = static_cast<double>(logits[i * static_cast<std::size_t>(model.config().vocab_size) + id]);
        const double wanted = expected[i].items()[1].number();
        test::that(std::abs(found - wanted) <= limit,
                   text(place, ": found the logit ", found, ", expected ", wanted, " +- ", limit));
    }
}

std::vector<std::int64_t> lengths(const Sequences& sequences) {
    std::vector<std::int64_t> found;
    for (int i = 0; i < sequences.batch_size(); i++) found.push_back(sequences.length(i));
    return found;
}

void run_scripts(test::Suite& suite) {
    for (const auto& script : suite.cases().items()) {
        if (script["kind"].string() != "sequences") continue;
        const std::string bundle(script["bundle"].string());
        const Model& model = suite.model(bundle);
        Sequences sequences(model, script["batch_size"].integer(1, 100), 0, 0);
        std::size_t number = 0;
        for (const auto& step : script["steps"].items()) {
            const std::string place = text(script["name"].string(), ", step ", number++);
            if (const auto error = step.find("error")) {
                const auto before = lengths(sequences);
                test::refused([&] { run_step(sequences, step, place); }, test::kind_of(error->string()), "", place);
                test::that(lengths(sequences) == before, place + ": a failed step changed a length");
                continue;
            }
            check_step(model, run_step(sequences, step, place), step, suite.limit(bundle), place);
        }
    }
}

// A prompt in chunks of several lengths, in several prompts, and token by token: the same logits of each position.
void check_chunks(const Model& model, double limit, const std::string& name) {
    const auto context = static_cast<std::size_t>(model.config().max_position_embeddings);
    const auto ids = test::some_ids(model, std::min<std::size_t>(context, 45), 7);
    const auto vocab = static_cast<std::size_t>(model.config().vocab_size);
    Sequences whole(model, 1, 0, 0);
    const auto expected = test::copied(whole.prefill(0, ids, true));
    for (const int chunk : {1, 2, 3, 5, 8, 13, 32, 64}) {
        Sequences sequences(model, 2, 0, chunk);
        const std::string place = text(name, " in chunks of ", chunk);
        test::close_to(sequences.prefill(1, ids, true), expected, limit, place);
        // The ring after the prompt: two more tokens, compared with the same text from its start.
        sequences.rewind(1, static_cast<std::int64_t>(ids.size()) - 2);
        const std::vector<std::int32_t> last = {0, ids[ids.size() - 2]};
        const std::vector<std::uint8_t> active = {0, 1};
        const auto row = test::copied(sequences.decode(last, active));
        test::close_to(std::span(row).subspan(vocab), std::span(expected).subspan((ids.size() - 2) * vocab, vocab),
                       limit, place + ", a token after a rewind");
        test::close_to(sequences.prefill(1, std::span(ids).last(1)), std::span(expected).last(vocab), limit,
                       place + ", a prompt of one token");
    }
    Sequences steps(model, 1, 0, 0);
    for (std::size_t i = 0; i < ids.size(); i++)
        test::close_to(steps.decode(std::span(ids).subspan(i, 1)), std::span(expected).subspan(i * vocab, vocab), limit,
                       text(name, ", decode of position ", i));
    Sequences split(model, 1, 0, 0);
    split.prefill(0, std::span(ids).first(11));
    split.prefill(0, std::span(ids).subspan(11, 1));
    test::close_to(split.prefill(0, std::span(ids).subspan(12)), std::span(expected).last(vocab), limit,
                   name + " in three prompts");
}

// A sequence whose max_length is below the window, and one that is full while others go on.
void check_short_and_full(const Model& model, double limit, const std::string& name) {
    const auto ids = test::some_ids(model, 4, 3);
    Sequences normal(model, 1, 0, 0);
    const auto expected = test::copied(normal.prefill(0, ids));
    Sequences small(model, 2, 4, 0);
    small.prefill(0, std::span(ids).first(2));
    const std::vector<std::uint8_t> first = {1, 0};
    const std::vector<std::uint8_t> second = {0, 1};
    const auto vocab = static_cast<std::size_t>(model.config().vocab_size);
    small.decode(std::vector<std::int32_t>{ids[2], 0}, first);
    auto logits = small.decode(std::vector<std::int32_t>{ids[3], 0}, first);
    test::close_to(logits.first(vocab), expected, limit, name + " with max_length 4");
    test::refused(
        [&] {
            small.decode(std::vector<std::int32_t>{0, 0}, first);
        },
        Kind::request, "max_length", name + ", a full sequence");
    // While sequence 0 is full and waits, sequence 1 goes on with another text. Then the last slot of sequence 0 is
    // used again.
    Sequences another(model, 1, 0, 0);
    const std::vector<std::int32_t> reversed(ids.rbegin(), ids.rend());
    const auto wanted_second = test::copied(another.prefill(0, reversed));
    for (const std::int32_t id : reversed) logits = small.decode(std::vector<std::int32_t>{0, id}, second);
    test::close_to(logits.subspan(vocab), wanted_second, limit, name + ", the second of two sequences");
    test::TemporaryFolder folder;
    const std::string path = (folder.path() / "full.safetensors").string();
    small.save(0, ids, path);
    Sequences other(model, 1, 0, 0);
    other.restore(0, path);
    normal.rewind(0, 4);
    const std::vector<std::int32_t> next = {ids[0]};
    const auto wanted = test::copied(normal.decode(next));
    test::close_to(other.decode(next), wanted, limit, name + ", a full sequence that waited");
}

// With the logits of every position, calls for one position run again what longer static graphs have run. The keys and
// values of the longer graphs stay.
void check_static_cache(const Model& model, const std::string& name) {
    const auto ids = test::some_ids(model, 21, 9);
    test::TemporaryFolder folder;
    std::vector<std::string> files;
    for (const bool all : {false, true}) {
        Sequences sequences(model, 1, 0, 0);
        sequences.prefill(0, ids, all);
        files.push_back((folder.path() / text(all)).string());
        sequences.save(0, ids, files.back());
    }
    test::that(test::read_file(files[0]) == test::read_file(files[1]), name + ": the caches of both ways differ");
}

// Return a copy of a bundle in which the record of a token id is damaged.
std::unique_ptr<Model> damaged(const test::Suite& suite, const std::string& bundle, std::int32_t id,
                               const std::filesystem::path& into) {
    std::filesystem::copy(suite.folder() / "bundles" / bundle, into, std::filesystem::copy_options::recursive);
    auto model = suite.open(into);
    const molkv::ShardInfo shard = model->bundle().table().shards.front();
    std::string content = test::read_file(into / shard.file);
    const auto at = static_cast<std::size_t>(shard.data_offset + id * model->bundle().table().stride);
    content[at] = static_cast<char>(content[at] ^ 1);
    model.reset();
    test::write_file(into / shard.file, content);
    return suite.open(into);
}

// Return ids without `avoided`.
std::vector<std::int32_t> ids_without(const Model& model, std::size_t count, std::int32_t avoided) {
    auto ids = test::some_ids(model, count, 11);
    for (auto& id : ids) id = id == avoided ? avoided + 1 : id;
    return ids;
}

// A record that cannot be read: each operation fails, and the sequence goes on as before.
void check_failures(const test::Suite& suite, const std::string& bundle) {
    constexpr std::int32_t bad = 5;
    test::TemporaryFolder folder;
    const auto model = damaged(suite, bundle, bad, folder.path() / bundle);
    const auto ids = ids_without(*model, 30, bad);
    const auto first = std::span(ids).first(17);
    Sequences expected(*model, 1, 0, 4);
    expected.prefill(0, first);
    const auto wanted = test::copied(expected.prefill(0, std::span(ids).subspan(17)));

    std::atomic<bool> cancelled = false;
    Sequences sequences(*model, 2, 0, 4, &cancelled);
    sequences.prefill(0, first);
    for (const std::size_t place : {std::size_t{0}, std::size_t{6}, std::size_t{12}}) {
        std::vector<std::int32_t> wrong(ids.begin() + 17, ids.end());
        wrong[place] = bad;
        test::refused([&] { sequences.prefill(0, wrong); }, Kind::bundle, "", text(bundle, ", bad token ", place));
        test::equal(sequences.length(0), 17, "the length after a failed prompt");
    }
    const std::vector<std::int32_t> both = {ids[0], bad};
    test::refused([&] { sequences.decode(both); }, Kind::bundle, "", bundle + ", decode");
    test::equal(sequences.length(0), 17, "the length after a failed step");
    test::equal(sequences.length(1), 0, "the length of the other sequence after a failed step");
    cancelled = true;
    test::refused([&] { sequences.prefill(0, std::span(ids).subspan(17)); }, Kind::cancelled, "cancel", "cancel");
    const auto found = test::copied(sequences.prefill(0, std::span(ids).subspan(17)));
    test::that(found == wanted, bundle + ": a failure changed later logits");
}

}  // namespace

int main(int argc, char** argv) {
    if (argc != 3) {
        std::cerr << "usage: test_sequences LIBONNXRUNTIME CONFORMANCE_FOLDER\n";
        return 2;
    }
    test::Suite suite(argv[1], argv[2]);
    run_scripts(suite);
    for (const std::string name : {"molkv", "mole", "dense", "experts-int8", "experts-int4", "experts-nf4",
                                   "window-int8", "window-int8-float16", "gemma4", "coreml", "nnapi"}) {
        check_chunks(suite.model(name), 2 * suite.limit(name), name);
        check_short_and_full(suite.model(name), 2 * suite.limit(name), name);
    }
    for (const std::string name : {"coreml", "nnapi"}) check_static_cache(suite.model(name), name);
    for (const std::string name : {"molkv", "mole", "window-int8", "gemma4"}) check_failures(suite, name);
    const Model& model = suite.model("molkv");
    const auto context = model.config().max_position_embeddings;
    test::refused([&] { Sequences(model, 0, 0, 0); }, Kind::request, "batch_size", "no sequences");
    test::refused([&] { Sequences(model, 1, context + 1, 0); }, Kind::request, "max_length",
                  "a length above the context");
    test::refused([&] { Sequences(model, 1, 0, -1); }, Kind::request, "prefill_chunk", "a negative chunk");
    test::refused([&] { Sequences(model, INT32_MAX, 0, 0); }, Kind::memory, "", "too many sequences");
    return test::finish();
}
