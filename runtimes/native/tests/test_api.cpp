// The C API: wrong arguments, sizes of structs, and the opening of models.
// Usage: test_api LIBRARY-OF-ONNXRUNTIME CONFORMANCE-FOLDER
#include <fcntl.h>

#include <cstddef>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <map>
#include <sstream>

#include "api_tools.h"

namespace fs = std::filesystem;
namespace test = molkv::test;
using test::check;
using test::continued;
using test::create_session;
using test::expect;
using test::greedy;
using test::Ids;
using test::prompt;
using test::prompt_of;
using test::refuse;

namespace {

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
    check_damage(base, bundles + "molkv");
    check_callback(base, bundles + "molkv", continued(session.get(), prompt, 6));
    return test::finish();
}
