// A decode step and a generated token without text allocate no memory outside of ONNX Runtime.
// Usage: test_allocations LIBRARY-OF-ONNXRUNTIME CONFORMANCE-FOLDER
#include <onnxruntime_c_api.h>

#include <atomic>
#include <cstdlib>
#include <new>

#include "check.h"
#include "handles.h"

// NOLINTBEGIN(cppcoreguidelines-macro-usage): the preprocessor decides with it which functions there are
#if defined(__SANITIZE_ADDRESS__)
#define MOLKV_HAS_ADDRESS_SANITIZER 1
#elif defined(__has_feature)
#if __has_feature(address_sanitizer)
#define MOLKV_HAS_ADDRESS_SANITIZER 1
#endif
#endif
// NOLINTEND(cppcoreguidelines-macro-usage)

namespace test = molkv::test;

namespace {

std::atomic<bool> counting = false;
std::atomic<int> allocations = 0;

void count_allocation() {
    if (counting) allocations++;
}

}  // namespace

#if defined(__GLIBC__) && !defined(MOLKV_HAS_ADDRESS_SANITIZER)
// operator new calls malloc, so these functions count both.
extern "C" {
void* __libc_malloc(std::size_t size);
void* __libc_calloc(std::size_t count, std::size_t size);
void* __libc_realloc(void* old, std::size_t size);
void* __libc_memalign(std::size_t alignment, std::size_t size);

void* malloc(std::size_t size) {
    count_allocation();
    return __libc_malloc(size);
}
void* calloc(std::size_t count, std::size_t size) {
    count_allocation();
    return __libc_calloc(count, size);
}
void* realloc(void* old, std::size_t size) {
    count_allocation();
    return __libc_realloc(old, size);
}
void* aligned_alloc(std::size_t alignment, std::size_t size) {
    count_allocation();
    return __libc_memalign(alignment, size);
}
}
#else
// NOLINTBEGIN: the replacements of the language's functions
void* operator new(std::size_t size) {
    count_allocation();
    void* const memory = std::malloc(size == 0 ? 1 : size);
    if (memory == nullptr) throw std::bad_alloc();
    return memory;
}
void* operator new(std::size_t size, const std::nothrow_t& /*tag*/) noexcept {
    count_allocation();
    return std::malloc(size == 0 ? 1 : size);
}
void operator delete(void* memory) noexcept {
    std::free(memory);
}
void operator delete(void* memory, std::size_t /*size*/) noexcept {
    std::free(memory);
}
// NOLINTEND
#endif

namespace {

const OrtApiBase* real_base = nullptr;
OrtApi wrapped_api;
OrtStatusPtr (*real_run)(OrtSession*, const OrtRunOptions*, const OrtIoBinding*) = nullptr;
std::atomic<int> runs = 0;

// What ONNX Runtime allocates while it runs a graph does not count.
OrtStatusPtr run_with_binding(OrtSession* session, const OrtRunOptions* options, const OrtIoBinding* binding) noexcept {
    const bool counted = counting.exchange(false);
    runs++;
    auto* const status = real_run(session, options, binding);
    counting = counted;
    return status;
}

const OrtApi* wrapped_get_api(std::uint32_t version) noexcept {
    const auto* const api = real_base->GetApi(version);
    if (api == nullptr) return nullptr;
    wrapped_api = *api;
    real_run = api->RunWithBinding;
    wrapped_api.RunWithBinding = run_with_binding;
    return &wrapped_api;
}

const char* wrapped_version() noexcept {
    return real_base->GetVersionString();
}

void check_decode(molkv_model* model, const std::string& name) {
    const auto session = test::create_session(model, 2);
    const std::vector<std::int32_t> prompt = {3, 1, 4, 1, 5};
    for (const std::int32_t sequence : {0, 1}) {
        test::check(molkv_session_prefill(session.get(), sequence, prompt.data(), prompt.size(), nullptr));
    }
    const std::vector<std::int32_t> ids = {7, 9};
    const std::vector<std::uint8_t> active = {0, 1};
    const float* logits = nullptr;
    runs = 0;
    allocations = 0;
    counting = true;
    for (int step = 0; step < 20; step++) {
        test::check(molkv_session_decode(session.get(), ids.data(), step % 3 == 0 ? active.data() : nullptr, &logits));
    }
    counting = false;
    test::equal(allocations.load(), 0, name + ": allocations in 20 decode steps");
    test::that(runs >= 20, name + ": the graph ran");
}

void check_generation(molkv_model* model, const std::string& name) {
    const auto session = test::create_session(model, 2);
    const std::vector<std::int32_t> prompt = {3, 1, 4, 1, 5};
    const std::vector<std::int32_t> longer = {3, 1, 4, 1, 5, 9, 2, 6};
    molkv_sampling sampling = {};
    sampling.size = sizeof(sampling);
    test::check(molkv_sampling_defaults(nullptr, &sampling));
    sampling.temperature = 0.8;
    sampling.top_k = 20;
    sampling.top_p = 0.9;
    sampling.min_p = 0.01;
    sampling.repetition_penalty = 1.1;
    sampling.presence_penalty = 0.5;
    const std::int32_t no_id = -1;
    molkv_generation_options options = {};
    options.size = sizeof(options);
    options.max_new_tokens = 20;
    options.sampling = &sampling;
    options.stop_ids = &no_id;
    options.with_logprobs = 1;
    options.best_count = 3;
    options.without_text = 1;
    const auto generation = test::generate(session.get(), {test::prompt_of(prompt), test::prompt_of(longer)}, options);
    molkv_token token;
    for (int i = 0; i < 2; i++) test::next_token(generation.get(), token);  // they run the prompts
    runs = 0;
    allocations = 0;
    counting = true;
    int tokens = 2;
    while (test::next_token(generation.get(), token)) tokens++;
    counting = false;
    test::equal(tokens, 40, name + ": generated tokens");
    test::equal(allocations.load(), 0, name + ": allocations for 38 tokens");
    test::that(runs >= 19, name + ": the graph ran");
}

}  // namespace

int main(int count, char** arguments) {
    if (count != 3) {
        std::cerr << "usage: test_allocations LIBRARY-OF-ONNXRUNTIME CONFORMANCE-FOLDER\n";
        return 2;
    }
    counting = true;
    std::free(std::malloc(100));
    const auto text = std::make_unique<std::string>(100, 'a');
    counting = false;
    test::that(allocations > 0, "the counter counts");
    real_base = test::load_onnxruntime(arguments[1]);
    const OrtApiBase base = {wrapped_get_api, wrapped_version};
    for (const std::string name : {"molkv", "mole", "window-int8", "gemma4", "coreml"}) {
        const auto model = test::open_model(&base, std::string(arguments[2]) + "/bundles/" + name);
        check_decode(model.get(), name);
        check_generation(model.get(), name);
    }
    return test::finish();
}
