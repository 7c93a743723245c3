// Calls of a graph with bound memory.
#include <utility>

#include "onnxruntime.h"

namespace molkv {

BoundCall::BoundCall(const GraphSession& session) : session_(&session) {
    const OnnxRuntime& runtime = session.runtime_;
    OrtIoBinding* binding = nullptr;
    runtime.check(runtime.api().CreateIoBinding(session.session_.get(), &binding), Kind::bundle, "a call of a graph");
    binding_ = {binding, runtime.api().ReleaseIoBinding};
}

Owned<OrtValue> BoundCall::tensor(const std::string& name, DType dtype, std::span<const std::int64_t> shape,
                                  void* data) const {
    std::size_t count = 1;
    for (const std::int64_t size : shape) count *= static_cast<std::size_t>(size);
    return session_->runtime_.tensor(tensor_type(dtype), shape, data, dtype_bytes(dtype, count), name);
}

void BoundCall::input(const std::string& name, DType dtype, std::span<const std::int64_t> shape, void* data) {
    Owned<OrtValue> value = tensor(name, dtype, shape, data);
    const OnnxRuntime& runtime = session_->runtime_;
    runtime.check(runtime.api().BindInput(binding_.get(), name.c_str(), value.get()), Kind::bundle, name);
    if (session_->own_memory_) copied_.insert_or_assign(name, std::move(value));
}

void BoundCall::output(const std::string& name, DType dtype, std::span<const std::int64_t> shape, void* data) {
    const Owned<OrtValue> value = tensor(name, dtype, shape, data);
    const OnnxRuntime& runtime = session_->runtime_;
    runtime.check(runtime.api().BindOutput(binding_.get(), name.c_str(), value.get()), Kind::bundle, name);
}

void BoundCall::run() {
    const OnnxRuntime& runtime = session_->runtime_;
    for (const auto& [name, value] : copied_) {
        runtime.check(runtime.api().BindInput(binding_.get(), name.c_str(), value.get()), Kind::bundle, name);
    }
    // ONNX Runtime's type of the session is not const here, but threads may run one session at the same time.
    runtime.check(runtime.api().RunWithBinding(session_->session_.get(), nullptr, binding_.get()), Kind::bundle,
                  "the dense graph fails");
}

}  // namespace molkv
