// The native functions of Native.kt, on top of molkv.h. A function that fails throws a MolkvException in Kotlin.
#include <dlfcn.h>
#include <jni.h>
#include <molkv.h>

#include <algorithm>
#include <cstdint>
#include <limits>
#include <locale>
#include <new>
#include <sstream>
#include <string>
#include <string_view>
#include <vector>

namespace {

// The JVM's environment of a call, and the class Native. A JNI function that returns null has thrown an exception.
struct Kotlin {
    JNIEnv* env;
    jclass native;

    // Call a function of Native that returns an object.
    template <typename... Arguments>
    jobject call(const char* name, const char* type, Arguments... arguments) const {
        const auto method = env->GetStaticMethodID(native, name, type);
        return method == nullptr ? nullptr : env->CallStaticObjectMethod(native, method, arguments...);
    }

    [[nodiscard]] bool thrown() const { return env->ExceptionCheck() != JNI_FALSE; }

    // Throw an exception, unless the status is MOLKV_OK or an exception was thrown. Returns whether none was thrown.
    // An empty message means that of the library.
    bool check(molkv_status status, std::string_view message = {}) const {
        if (thrown()) return false;
        if (status == MOLKV_OK) return true;
        const auto text = bytes(message.empty() ? std::string_view(molkv_last_error()) : message);
        if (text == nullptr) return false;
        const auto error = call("error", "(I[B)Ldev/molkv/MolkvException;", static_cast<jint>(status), text);
        if (!thrown()) env->Throw(static_cast<jthrowable>(error));
        return false;
    }

    // Return the result of `body`. No exception of C++ enters the JVM.
    template <typename Body>
    auto guarded(const Body& body) const noexcept -> decltype(body()) {
        try {
            return body();
        } catch (const std::bad_alloc&) {
            check(MOLKV_ERROR_MEMORY, "there is no memory left for the arguments of a call");
            return decltype(body())();
        }
    }

    [[nodiscard]] jbyteArray bytes(std::string_view text) const {
        const auto size = static_cast<jsize>(text.size());
        const auto array = env->NewByteArray(size);
        if (array != nullptr) env->SetByteArrayRegion(array, 0, size, reinterpret_cast<const jbyte*>(text.data()));
        return array;
    }

    jintArray ids(const std::int32_t* first, std::size_t count) const {
        const auto array = env->NewIntArray(static_cast<jsize>(count));
        if (array != nullptr) env->SetIntArrayRegion(array, 0, static_cast<jsize>(count), first);
        return array;
    }

    std::string text(jbyteArray array) const {
        std::string result(static_cast<std::size_t>(env->GetArrayLength(array)), '\0');
        env->GetByteArrayRegion(array, 0, static_cast<jsize>(result.size()), reinterpret_cast<jbyte*>(result.data()));
        return result;
    }

    std::vector<std::int32_t> ids(jintArray array) const {
        std::vector<std::int32_t> result(static_cast<std::size_t>(env->GetArrayLength(array)));
        env->GetIntArrayRegion(array, 0, static_cast<jsize>(result.size()), result.data());
        return result;
    }

    std::vector<double> numbers(jdoubleArray array) const {
        std::vector<double> result(static_cast<std::size_t>(env->GetArrayLength(array)));
        env->GetDoubleArrayRegion(array, 0, static_cast<jsize>(result.size()), result.data());
        return result;
    }
};

template <typename Object>
Object* to(jlong handle) {
    return reinterpret_cast<Object*>(static_cast<std::intptr_t>(handle));
}

jlong from(const void* object) {
    return static_cast<jlong>(reinterpret_cast<std::intptr_t>(object));
}

// Return the parts of a text. Each part ends with a NUL.
std::vector<const char*> split(const std::string& joined) {
    std::vector<const char*> parts;
    for (std::size_t at = 0; at < joined.size(); at = joined.find('\0', at) + 1) parts.push_back(&joined[at]);
    return parts;
}

// Return null after throwing an exception if the library cannot be loaded.
const OrtApiBase* load_onnxruntime(const Kotlin& kotlin, const std::string& path) {
    void* library = dlopen(path.c_str(), RTLD_NOW);
    void* function = library == nullptr ? nullptr : dlsym(library, "OrtGetApiBase");
    if (function != nullptr) return reinterpret_cast<const OrtApiBase* (*)()>(function)();
    const std::string reason = dlerror();
    kotlin.check(MOLKV_ERROR_PROVIDER, "ONNX Runtime cannot be loaded: " + reason);
    return nullptr;
}

struct Opener {
    Kotlin kotlin;
    jobject files;
};

int open_file(void* context, const char* name, molkv_file* file) {
    const auto& [kotlin, files] = *static_cast<Opener*>(context);
    const auto text = kotlin.thrown() ? nullptr : kotlin.bytes(name);  // the opener can have failed for another file
    if (text == nullptr) return 1;
    const auto region = kotlin.call("openFile", "(Ldev/molkv/FileOpener;[B)[J", files, text);
    if (kotlin.thrown() || region == nullptr) return 1;
    jlong numbers[3];
    kotlin.env->GetLongArrayRegion(static_cast<jlongArray>(region), 0, 3, numbers);
    *file = {static_cast<int>(numbers[0]), numbers[1], numbers[2]};
    kotlin.env->DeleteLocalRef(region);
    kotlin.env->DeleteLocalRef(text);
    return 0;
}

}  // namespace

extern "C" {

JNIEXPORT jlong JNICALL Java_dev_molkv_Native_open(JNIEnv* env, jclass native, jbyteArray onnxruntime,
                                                   jbyteArray folder, jobject files, jbyteArray texts, jint threads,
                                                   jboolean require_provider, jboolean skip_provider_check) {
    const Kotlin kotlin{env, native};
    return kotlin.guarded([&]() -> jlong {
        Opener context{kotlin, files};
        const auto path = folder == nullptr ? std::string() : kotlin.text(folder);
        const auto joined = kotlin.text(texts);
        const auto parts = split(joined);  // profile, provider, names and values of options
        std::vector<molkv_option> pairs;
        for (std::size_t at = 2; at < parts.size(); at += 2) pairs.push_back({parts[at], parts[at + 1]});
        molkv_model_options options{};
        options.size = sizeof(options);
        options.onnxruntime = load_onnxruntime(kotlin, kotlin.text(onnxruntime));
        if (options.onnxruntime == nullptr) return 0;
        options.path = folder == nullptr ? nullptr : path.c_str();
        options.open_file = open_file;
        options.open_file_context = &context;
        options.profile = parts[0][0] == '\0' ? nullptr : parts[0];
        options.provider = parts[1];
        options.provider_options = pairs.data();
        options.provider_option_count = pairs.size();
        options.require_provider = require_provider;
        options.skip_provider_check = skip_provider_check;
        options.threads = threads;
        molkv_model* model = nullptr;
        if (kotlin.check(molkv_model_open(&options, &model))) return from(model);
        molkv_model_close(model);  // it is open if only the opener of an optional file has thrown an exception
        return 0;
    });
}

// Return numbers of the default sampling, and the fields of molkv_model_info in their order, as texts that end with a
// NUL. The end ids are the last ones.
JNIEXPORT jbyteArray JNICALL Java_dev_molkv_Native_facts(JNIEnv* env, jclass native, jlong model) {
    const Kotlin kotlin{env, native};
    return kotlin.guarded([&]() -> jbyteArray {
        molkv_sampling sampling{};
        sampling.size = sizeof(sampling);
        molkv_model_info info{};
        info.size = sizeof(info);
        if (!kotlin.check(molkv_sampling_defaults(to<molkv_model>(model), &sampling)) ||
            !kotlin.check(molkv_model_get_info(to<molkv_model>(model), &info))) {
            return nullptr;
        }
        std::ostringstream texts;
        texts.imbue(std::locale::classic());
        texts.precision(std::numeric_limits<double>::max_digits10);
        const auto add = [&](const auto&... facts) { ((texts << facts << '\0'), ...); };
        add(sampling.temperature, sampling.top_k, sampling.top_p, sampling.min_p, sampling.repetition_penalty);
        add(info.model_type, info.profile, info.dense_dtype, info.kv_dtype, info.experts_dtype, info.placements);
        add(info.vocab_size, info.context_length, info.expert_window, info.has_tokenizer);
        add(info.dense_bytes, info.store_bytes, info.record_bytes);
        std::for_each_n(info.end_ids, info.end_id_count, add);
        return kotlin.bytes(texts.str());
    });
}

JNIEXPORT jbyteArray JNICALL Java_dev_molkv_Native_selfTest(JNIEnv* env, jclass native, jlong model) {
    const Kotlin kotlin{env, native};
    return kotlin.guarded([&] {
        const char* report = "";
        const auto status = molkv_selftest(to<molkv_model>(model), &report);
        const bool passed = kotlin.check(status, molkv_last_error() + std::string("\n") + report);
        return passed ? kotlin.bytes(report) : nullptr;
    });
}

JNIEXPORT jintArray JNICALL Java_dev_molkv_Native_tokenize(JNIEnv* env, jclass native, jlong model, jbyteArray bytes,
                                                           jboolean add_special_tokens) {
    const Kotlin kotlin{env, native};
    return kotlin.guarded([&]() -> jintArray {
        const auto text = kotlin.text(bytes);
        std::vector<std::int32_t> ids(text.size() + 16);  // usually enough
        std::size_t count = ids.size();
        do {
            ids.resize(count);
            const auto status = molkv_tokenize(to<molkv_model>(model), text.data(), text.size(), add_special_tokens,
                                               ids.data(), ids.size(), &count);
            if (!kotlin.check(status)) return nullptr;
        } while (count > ids.size());
        return kotlin.ids(ids.data(), count);
    });
}

JNIEXPORT jlong JNICALL Java_dev_molkv_Native_createSession(JNIEnv* env, jclass native, jlong model, jint batch_size,
                                                            jint max_length, jint prefill_chunk) {
    const molkv_session_options options{sizeof(options), batch_size, max_length, prefill_chunk};
    molkv_session* session = nullptr;
    Kotlin{env, native}.check(molkv_session_create(to<molkv_model>(model), &options, &session));
    return from(session);
}

JNIEXPORT void JNICALL Java_dev_molkv_Native_cancel(JNIEnv*, jclass, jlong session) {
    molkv_session_cancel(to<molkv_session>(session));
}

JNIEXPORT jintArray JNICALL Java_dev_molkv_Native_ids(JNIEnv* env, jclass native, jlong session, jint sequence) {
    const Kotlin kotlin{env, native};
    const std::int32_t* ids = nullptr;
    std::size_t count = 0;
    if (!kotlin.check(molkv_session_ids(to<molkv_session>(session), sequence, &ids, &count))) return nullptr;
    return kotlin.ids(ids, count);
}

JNIEXPORT void JNICALL Java_dev_molkv_Native_rewind(JNIEnv* env, jclass native, jlong session, jint sequence,
                                                    jint length) {
    Kotlin{env, native}.check(molkv_session_rewind(to<molkv_session>(session), sequence, length));
}

JNIEXPORT jint JNICALL Java_dev_molkv_Native_fork(JNIEnv* env, jclass native, jlong session, jint sequence) {
    std::int32_t copy = 0;
    Kotlin{env, native}.check(molkv_session_fork(to<molkv_session>(session), sequence, &copy));
    return copy;
}

JNIEXPORT void JNICALL Java_dev_molkv_Native_save(JNIEnv* env, jclass native, jlong session, jint sequence,
                                                  jbyteArray path) {
    const Kotlin kotlin{env, native};
    kotlin.guarded(
        [&] { kotlin.check(molkv_session_save(to<molkv_session>(session), sequence, kotlin.text(path).c_str())); });
}

JNIEXPORT void JNICALL Java_dev_molkv_Native_restore(JNIEnv* env, jclass native, jlong session, jint sequence,
                                                     jbyteArray path) {
    const Kotlin kotlin{env, native};
    kotlin.guarded(
        [&] { kotlin.check(molkv_session_restore(to<molkv_session>(session), sequence, kotlin.text(path).c_str())); });
}

// ids, lengths: the ids of all prompts, one after the other, and their numbers. sampling: the parameters as `sampling`
// returns them, then token ids and biases, alternately.
JNIEXPORT jlong JNICALL Java_dev_molkv_Native_generate(JNIEnv* env, jclass native, jlong session, jintArray ids,
                                                       jintArray lengths, jint max_new_tokens, jdoubleArray sampling,
                                                       jlong seed, jintArray stop_ids, jbyteArray stop) {
    const Kotlin kotlin{env, native};
    return kotlin.guarded([&] {
        const auto all_ids = kotlin.ids(ids);
        std::vector<molkv_prompt> prompts;
        const std::int32_t* first = all_ids.data();
        for (const auto length : kotlin.ids(lengths)) {
            prompts.push_back({nullptr, 0, first, static_cast<std::size_t>(length)});
            first += length;
        }
        const auto n = kotlin.numbers(sampling);
        std::vector<molkv_logit_bias> biases;
        for (std::size_t at = 7; at < n.size(); at += 2) biases.push_back({static_cast<int>(n[at]), n[at + 1]});
        const molkv_sampling parameters{sizeof(parameters),
                                        n[0],
                                        static_cast<int>(n[1]),
                                        n[2],
                                        n[3],
                                        n[4],
                                        n[5],
                                        n[6],
                                        static_cast<std::uint64_t>(seed),
                                        biases.data(),
                                        biases.size()};
        auto ends = stop_ids == nullptr ? std::vector<std::int32_t>() : kotlin.ids(stop_ids);
        ends.reserve(1);  // an empty list has an address, too, since null means the ids of the bundle
        const auto joined = kotlin.text(stop);
        const auto parts = split(joined);
        molkv_generation_options options{};
        options.size = sizeof(options);
        options.max_new_tokens = max_new_tokens;
        options.sampling = &parameters;
        options.stop_ids = stop_ids == nullptr ? nullptr : ends.data();
        options.stop_id_count = ends.size();
        options.stop = parts.data();
        options.stop_count = parts.size();
        molkv_generation* generation = nullptr;
        kotlin.check(molkv_generate(to<molkv_session>(session), prompts.data(), prompts.size(), &options, &generation));
        return from(generation);
    });
}

JNIEXPORT jobject JNICALL Java_dev_molkv_Native_next(JNIEnv* env, jclass native, jlong generation) {
    const Kotlin kotlin{env, native};
    molkv_token token{};
    token.size = sizeof(token);
    const auto status = molkv_generation_next(to<molkv_generation>(generation), &token);
    if (status == MOLKV_END || !kotlin.check(status)) return nullptr;
    const auto text = kotlin.bytes(token.text == nullptr ? "" : std::string_view(token.text, token.text_length));
    if (text == nullptr) return nullptr;
    return kotlin.call("token", "(II[BI)Ldev/molkv/Token;", token.sequence, token.id, text,
                       static_cast<jint>(token.finish));
}

JNIEXPORT void JNICALL Java_dev_molkv_Native_free(JNIEnv*, jclass, jlong generation, jlong session, jlong model) {
    molkv_generation_free(to<molkv_generation>(generation));
    molkv_session_free(to<molkv_session>(session));
    molkv_model_close(to<molkv_model>(model));
}

}  // extern "C"
