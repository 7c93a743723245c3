// A process with the native driver as a contender of benchmarks/speed/contest.py. It reads orders and writes answers,
// each one line of JSON: `contender LIBONNXRUNTIME BUNDLE THREADS [CONTEXT]`.
#include <dlfcn.h>
#include <molkv.h>

#include <algorithm>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <fstream>
#include <iostream>
#include <string>
#include <vector>

namespace {

constexpr int32_t default_context = 1024;  // benchmarks.speed.CONTEXT
constexpr int steps = 48;                  // benchmarks.speed.STEPS

void check(molkv_status status) {
    if (status == MOLKV_OK) return;
    std::cerr << molkv_last_error() << "\n";
    std::exit(1);
}

double now() {
    return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count();
}

// Return the peak of the resident set, in bytes.
long long peak_rss() {
    std::ifstream status("/proc/self/status");
    for (std::string word; status >> word;) {
        long long kibibytes = 0;
        if (word == "VmHWM:" && status >> kibibytes) return 1024 * kibibytes;
    }
    return 0;
}

molkv_model* open_model(const char* library, const char* bundle, int threads) {
    void* handle = dlopen(library, RTLD_NOW | RTLD_LOCAL);
    void* symbol = handle == nullptr ? nullptr : dlsym(handle, "OrtGetApiBase");
    if (symbol == nullptr) {
        std::cerr << dlerror() << "\n";
        std::exit(1);
    }
    molkv_model_options options = {};
    options.size = sizeof options;
    options.onnxruntime = reinterpret_cast<const OrtApiBase* (*)()>(symbol)();
    options.path = bundle;
    options.threads = threads;
    molkv_model* model = nullptr;
    check(molkv_model_open(&options, &model));
    return model;
}

molkv_session* new_session(molkv_model* model, int batch, int32_t context_length) {
    molkv_session_options options = {};
    options.size = sizeof options;
    options.batch_size = batch;
    options.max_length = context_length;
    molkv_session* session = nullptr;
    check(molkv_session_create(model, &options, &session));
    return session;
}

// Return the seconds of a prefill, or the median seconds of a decode step.
double measure(molkv_session* session, const std::string& what, int batch, const std::vector<int32_t>& ids) {
    const size_t prompt = what == "prefill" ? ids.size() : ids.size() - steps;
    const double start = now();
    for (int sequence = 0; sequence < batch; sequence++) {
        check(molkv_session_prefill(session, sequence, ids.data(), prompt, nullptr));
    }
    if (what == "prefill") return now() - start;
    std::vector<double> times;
    for (size_t place = prompt; place < ids.size(); place++) {
        const std::vector<int32_t> tokens(static_cast<size_t>(batch), ids[place]);
        const double before = now();
        check(molkv_session_decode(session, tokens.data(), nullptr, nullptr));
        times.push_back(now() - before);
    }
    std::sort(times.begin(), times.end());
    return (times[times.size() / 2] + times[(times.size() - 1) / 2]) / 2;
}

}  // namespace

int main(int count, char** arguments) {
    if (count != 4 && count != 5) return 2;
    const int32_t context = count == 5 ? std::atoi(arguments[4]) : default_context;
    molkv_model* model = open_model(arguments[1], arguments[2], std::atoi(arguments[3]));
    molkv_model_info info = {};
    info.size = sizeof info;
    check(molkv_model_get_info(model, &info));
    std::cout << "ready" << std::endl;
    molkv_session* session = nullptr;
    int batch_of_session = 0;
    for (std::string line; std::getline(std::cin, line);) {
        char what[16] = "";
        int length = 0;
        int batch = 0;
        if (std::sscanf(line.c_str(), R"({"what": "%15[a-z]", "length": %d, "batch": %d)", what, &length, &batch) !=
            3) {
            return 2;
        }
        if (batch != batch_of_session) {
            molkv_session_free(session);
            session = new_session(model, batch, std::min(context, info.context_length));
            batch_of_session = batch;
        }
        for (int sequence = 0; sequence < batch; sequence++) check(molkv_session_rewind(session, sequence, 0));
        std::vector<int32_t> ids(static_cast<size_t>(length));
        uint32_t state = 1;
        for (int32_t& id : ids) {
            state = state * 1664525U + 1013904223U;
            id = static_cast<int32_t>((state >> 8U) % static_cast<uint32_t>(info.vocab_size));
        }
        const double seconds = measure(session, what, batch, ids);
        std::cout << R"({"seconds": )" << seconds << R"(, "rss": )" << peak_rss() << "}" << std::endl;
    }
    molkv_session_free(session);
    molkv_model_close(model);
}
