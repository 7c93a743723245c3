// The C API: models, texts and token ids. api_sessions.cpp has the rest.
#include "api.h"

#include <algorithm>
#include <array>
#include <map>

#include "api_support.h"
#include "callback_files.h"
#include "generation.h"
#include "selftest.h"
#include "utf8.h"

using namespace molkv;

namespace {

constexpr const char* version = "0.1.0";
constexpr std::size_t longest_failure = 2000;  // bytes
// The C API keeps the last failure of each thread, as errno does.
// NOLINTNEXTLINE(cppcoreguidelines-avoid-non-const-global-variables)
thread_local std::array<char, longest_failure + 1> last_failure;

std::map<std::string, std::string> options_of(const molkv_model_options& options) {
    std::map<std::string, std::string> result;
    const auto* const list =
        given_list(options.provider_options, options.provider_option_count, "options: provider_options");
    for (std::size_t i = 0; i < options.provider_option_count; i++) {
        const std::string name = given(list[i].name, "options: provider_options: name");
        if (!result.emplace(name, given(list[i].value, "options: provider_options: value")).second) {
            fail(Kind::request, "options: provider_options: found ", name, " a second time");
        }
    }
    return result;
}

Target target_of(const molkv_model_options& options) {
    if (options.threads < 0) {
        fail(Kind::request, "options: threads: found ", options.threads, ", expected 0 or more");
    }
    Target target;
    if (options.provider != nullptr) target.provider = options.provider;
    target.options = options_of(options);
    target.required = options.require_provider != 0;
    target.threads = options.threads;
    return target;
}

std::unique_ptr<molkv_model> open_model(const molkv_model_options& options) {
    const auto target = target_of(options);
    const std::string profile = options.profile == nullptr ? "" : options.profile;
    const bool unchecked = options.skip_provider_check != 0;
    given(options.onnxruntime, "options: onnxruntime");
    if (options.path != nullptr) {
        return std::make_unique<molkv_model>(options.onnxruntime, std::make_shared<Folder>(options.path), target,
                                             profile, unchecked);
    }
    if (options.open_file == nullptr) fail(Kind::request, "options: found neither path nor open_file");
    const auto files = std::make_shared<CallbackFiles>(options.open_file, options.open_file_context);
    auto model = std::make_unique<molkv_model>(options.onnxruntime, files, target, profile, unchecked);
    files->freeze();
    return model;
}

std::int64_t total_size(const Manifest& manifest, const Graph& graph) {
    std::uint64_t size = graph.is_ort_format() ? 0 : manifest.files.at(graph.data).size;
    for (const auto& file : graph.files) size += manifest.files.at(file.file).size;
    return static_cast<std::int64_t>(size);
}

molkv_model_info describe(const molkv_model& handle) {
    const auto& bundle = handle.model.bundle();
    const auto& manifest = bundle.manifest();
    molkv_model_info info = {};
    info.model_type = bundle.config().model_type.c_str();
    info.profile = bundle.graph().profile.c_str();
    info.dense_dtype = bundle.graph().dense_dtype.c_str();
    info.kv_dtype = dtype_name(bundle.graph().kv_dtype);
    info.experts_dtype = dtype_name(bundle.table().dtype);
    info.placements = handle.placements.c_str();
    info.vocab_size = static_cast<std::int32_t>(bundle.config().vocab_size);
    info.context_length = static_cast<std::int32_t>(bundle.config().max_position_embeddings);
    info.expert_window = static_cast<std::int32_t>(bundle.config().expert_window);
    info.has_tokenizer = handle.model.has_tokenizer() ? 1 : 0;
    info.dense_bytes = total_size(manifest, bundle.graph());
    for (const auto& shard : bundle.table().shards) {
        info.store_bytes += static_cast<std::int64_t>(manifest.files.at(shard.file).size);
    }
    info.record_bytes = bundle.table().stride;
    info.end_ids = manifest.generation.eos_token_ids.data();
    info.end_id_count = manifest.generation.eos_token_ids.size();
    return info;
}

}  // namespace

void molkv::keep_failure(std::string_view description) noexcept {
    const std::size_t size = std::min(description.size(), longest_failure);
    std::copy_n(description.begin(), size, last_failure.begin());
    last_failure[size] = '\0';
}

const char* molkv_version(void) {
    return version;
}

const char* molkv_last_error(void) {
    return last_failure.data();
}

molkv_status molkv_model_open(const molkv_model_options* options, molkv_model** model) {
    return guarded([&] {
        given(model, "model");
        auto opened = open_model(read_struct(options, "options"));
        *model = opened.release();
        return MOLKV_OK;
    });
}

void molkv_model_close(molkv_model* model) {
    const std::unique_ptr<molkv_model> owned(model);
}

molkv_status molkv_model_get_info(const molkv_model* model, molkv_model_info* info) {
    return guarded([&] {
        write_struct(info, describe(*given(model, "model")), "info");
        return MOLKV_OK;
    });
}

molkv_status molkv_selftest(molkv_model* model, const char** report) {
    return guarded([&] {
        given(model, "model");
        given(report, "report");
        auto result = selftest(model->model);
        model->report = std::move(result.report);
        *report = model->report.c_str();
        if (!result.failure) return MOLKV_OK;
        keep_failure(result.failure->what());
        return status_of(result.failure->kind());
    });
}

molkv_status molkv_tokenize(const molkv_model* model, const char* text, size_t length, int32_t add_special_tokens,
                            int32_t* ids, size_t capacity, size_t* count) {
    return guarded([&] {
        const auto& tokenizer = given(model, "model")->model.tokenizer();
        const std::string_view content(given_list(text, length, "text"), length);
        given_list(ids, capacity, "ids");
        given(count, "count");
        if (!is_utf8(content)) fail(Kind::request, "text: found bytes that are not text, expected UTF-8");
        const auto found = tokenizer.encode(content, add_special_tokens != 0);
        std::copy_n(found.begin(), std::min(found.size(), capacity), ids);
        *count = found.size();
        return MOLKV_OK;
    });
}

molkv_status molkv_detokenize(const molkv_model* model, const int32_t* ids, size_t count, char* text, size_t capacity,
                              size_t* length) {
    return guarded([&] {
        const auto& opened = given(model, "model")->model;
        const std::span<const std::int32_t> content(given_list(ids, count, "ids"), count);
        given_list(text, capacity, "text");
        given(length, "length");
        opened.check_ids("ids", content);
        const auto found = opened.tokenizer().decode(content);
        std::copy_n(found.begin(), std::min(found.size(), capacity), text);
        *length = found.size();
        return MOLKV_OK;
    });
}
