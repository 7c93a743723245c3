// Saved sessions: files of the Python driver are restored, and saved again with the same contents; wrong ones refused.
// Usage: test_session_files LIBONNXRUNTIME CONFORMANCE_FOLDER
#include <sys/stat.h>

#include "safetensors.h"
#include "sequence_tools.h"
#include "session.h"

using molkv::File;
using molkv::Kind;
using molkv::Sequences;
using molkv::text;
namespace test = molkv::test;

namespace {

// Return everything after the header of a safetensors file.
std::string data_of(const std::string& path) {
    const File file = File::open(path, Kind::request);
    return test::read_file(path).substr(molkv::read_safetensors(file, Kind::request).data_offset);
}

void check_session(test::Suite& suite, const molkv::JsonValue& session) {
    const std::string name(session["name"].string());
    const auto& model = suite.model(std::string(session["bundle"].string()));
    const std::string path = (suite.folder() / "sessions" / session["session"].string()).string();
    Sequences sequences(model, 2, 0, 0);
    const auto ids = sequences.restore(1, path);
    test::that(ids == test::ids_of(session["ids"]), name + ": the ids of the text");
    test::that(sequences.length(1) > 0 && sequences.length(0) == 0, name + ": the sequence that was filled");
    test::refused([&] { static_cast<void>(sequences.restore(1, path)); }, Kind::request, "in use",
                  name + " in a used sequence");

    test::TemporaryFolder folder;
    const std::string own = (folder.path() / "own.safetensors").string();
    sequences.save(1, ids, own);
    test::that(data_of(own) == data_of(path), name + ": the data of the saved file differs");
    struct stat found {};
    ::stat(own.c_str(), &found);
    test::equal(found.st_mode & 0777U, 0600U, name + ": the mode of the file");

    // The restored sequence goes on like the same text from its start.
    const auto then = test::ids_of(session["then"]);
    std::vector<std::int32_t> rest(ids.begin() + sequences.length(1), ids.end());
    rest.insert(rest.end(), then.begin(), then.end());
    std::vector<std::int32_t> whole = ids;
    whole.insert(whole.end(), then.begin(), then.end());
    const double limit = 2 * suite.limit(std::string(session["bundle"].string()));
    const auto expected = test::copied(sequences.prefill(0, whole));
    test::close_to(sequences.prefill(1, rest), expected, limit, name + ": the text goes on");

    // A saved session is replaced; another file is not, and stays as it is.
    sequences.save(0, whole, own);
    Sequences again(model, 1, 0, 0);
    test::that(again.restore(0, own) == whole, name + ": the ids of the replaced file");
    test::equal(again.length(0), static_cast<std::int64_t>(whole.size()), name + ": the length of the replaced file");
    const auto other = folder.path() / "notes.txt";
    test::write_file(other, "notes");
    test::refused([&] { sequences.save(0, whole, other.string()); }, Kind::request, "not replaced", name + ": notes");
    test::equal(test::read_file(other), "notes", name + ": the other file");
    test::refused([&] { sequences.save(0, whole, (folder.path() / "none" / "a").string()); }, Kind::request,
                  "cannot be written", name + ": no folder");
    const auto files = std::distance(std::filesystem::directory_iterator(folder.path()), {});
    test::equal(files, 2, name + ": the number of files in the folder");
}

void check_refused(test::Suite& suite, const molkv::JsonValue& session) {
    const std::string name(session["name"].string());
    std::string content = test::read_file(suite.folder() / "sessions" / session["session"].string());
    for (const auto& patch : session["patches"].items()) {
        const auto size = static_cast<std::int64_t>(content.size());
        content.replace(static_cast<std::size_t>(patch["offset"].integer(0, size)),
                        static_cast<std::size_t>(patch["delete"].integer(0, size)),
                        test::hex_bytes(patch["insert"].string()));
    }
    test::TemporaryFolder folder;
    const auto path = folder.path() / "session.safetensors";
    test::write_file(path, content);
    const auto& model = suite.model(std::string(session["bundle"].string()));
    Sequences sequences(model, 1, 0, 0);
    test::refused([&] { static_cast<void>(sequences.restore(0, path.string())); },
                  test::kind_of(session["error"].string()), "session.safetensors", name);
    test::equal(sequences.length(0), 0, name + ": the length");
    const auto ids = test::some_ids(model, 9, 1);
    Sequences fresh(model, 1, 0, 0);
    const auto expected = test::copied(fresh.prefill(0, ids));
    test::that(test::copied(sequences.prefill(0, ids)) == expected, name + ": later logits differ");
}

// Files that no patch of the suite has.
void check_other_files(test::Suite& suite) {
    test::TemporaryFolder folder;
    const auto& model = suite.model("molkv");
    Sequences sequences(model, 1, 0, 0);
    const auto refuse = [&](const std::string& content, const char* part) {
        test::write_file(folder.path() / "x", content);
        test::refused([&] { static_cast<void>(sequences.restore(0, (folder.path() / "x").string())); }, Kind::request,
                      part, text("a file of ", content.size(), " bytes"));
    };
    refuse("", "");
    refuse(std::string(100, '\xff'), "");
    const std::string header = R"({"__metadata__":{"session_version":"1"}})";
    refuse(std::string(1, static_cast<char>(header.size())) + std::string(7, '\0') + header, "sha256");
    test::refused([&] { static_cast<void>(sequences.restore(0, (folder.path() / "none").string())); }, Kind::request,
                  "none", "a missing file");
    test::refused([&] { sequences.save(0, {}, (folder.path() / "x").string()); }, Kind::request, "0 tokens",
                  "an empty session");
    // A session whose ids were not run at all, and one that is too long for the sequences.
    const auto ids = test::some_ids(model, 12, 5);
    sequences.save(0, ids, (folder.path() / "none-run").string());
    test::that(sequences.restore(0, (folder.path() / "none-run").string()) == ids, "a session without a cache");
    test::equal(sequences.length(0), 0, "the length of a session without a cache");
    sequences.prefill(0, ids);
    sequences.save(0, ids, (folder.path() / "long").string());
    Sequences small(model, 1, 11, 0);
    test::refused([&] { static_cast<void>(small.restore(0, (folder.path() / "long").string())); }, Kind::request,
                  "max_length", "a session that is too long");
}

// A full text has one id more than fits into the KV cache. Here nothing of it was run.
void check_full_text(test::Suite& suite) {
    const auto& model = suite.model("molkv");
    const auto ids = test::some_ids(model, 12, 5);
    molkv::Session session(model, 2, 11, 0);
    session.append(1, std::span(ids).first(11));
    session.push(1, ids[11]);
    session.drop_state();
    test::equal(session.fork(1), 0, "the copy of a full text");
    test::that(std::equal(ids.begin(), ids.end(), session.ids(0).begin(), session.ids(0).end()), "the ids of the copy");
}

}  // namespace

int main(int argc, char** argv) {
    if (argc != 3) {
        std::cerr << "usage: test_session_files LIBONNXRUNTIME CONFORMANCE_FOLDER\n";
        return 2;
    }
    test::Suite suite(argv[1], argv[2]);
    for (const auto& session : suite.cases().items()) {
        if (session["kind"].string() == "session") check_session(suite, session);
        if (session["kind"].string() == "session-refused") check_refused(suite, session);
    }
    check_other_files(suite);
    check_full_text(suite);
    return test::finish();
}
