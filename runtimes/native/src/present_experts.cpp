// The vectors of records as inputs of the graph.
#include "present_experts.h"

#include <algorithm>

#include "host_numbers.h"

namespace molkv {

PresentExperts::PresentExperts(const Bundle& bundle, const RecordDecoder& decoder, int batch_size)
    : decoder_(decoder), batch_size_(batch_size), dtype_(input_dtype(bundle.graph())) {
    const auto& layers = bundle.config().expert_layers;
    const auto vectors = bundle.family().record_vectors(bundle.config());
    for (std::size_t vector = 0; vector < vectors.size(); vector++) {
        std::size_t numbers = 1;
        for (const std::int64_t size : vectors[vector].shape)
            numbers = checked_product({static_cast<std::int64_t>(numbers), size});
        for (std::size_t layer = 0; layer < layers.size(); layer++) {
            const std::size_t all = checked_product({batch_size, static_cast<std::int64_t>(numbers)});
            inputs_.push_back({text("expert_", vectors[vector].name, ".", layers[layer]),
                               layer,
                               vector,
                               vectors[vector].shape,
                               numbers,
                               ZeroedArray<std::byte>(dtype_bytes(dtype_, all)),
                               {}});
            scratch_.resize(std::max(scratch_.size(), numbers));
        }
    }
}

HostInput PresentExperts::bound(const Input& input, std::int64_t sequences, std::int64_t length,
                                std::byte* data) const {
    std::vector<std::int64_t> shape = {sequences, length};
    shape.insert(shape.end(), input.shape.begin(), input.shape.end());
    return {input.name, dtype_, std::move(shape), data};
}

std::vector<HostInput> PresentExperts::decode_inputs() {
    std::vector<HostInput> found;
    for (const Input& input : inputs_) found.push_back(bound(input, batch_size_, 1, input.step.data()));
    return found;
}

void PresentExperts::put(const Input& input, std::span<const std::byte> record, std::byte* into) {
    if (dtype_ == DType::float32) {
        decoder_.vector(record, input.layer, input.vector, {reinterpret_cast<float*>(into), input.numbers});
        return;
    }
    const std::span<float> numbers = std::span(scratch_).first(input.numbers);
    decoder_.vector(record, input.layer, input.vector, numbers);
    store_numbers(numbers, dtype_, into);
}

void PresentExperts::decode(int sequence, std::int64_t /*position*/, std::span<const std::byte> record) {
    for (const Input& input : inputs_)
        put(input, record, input.step.data() + dtype_bytes(dtype_, static_cast<std::size_t>(sequence) * input.numbers));
}

void PresentExperts::begin(const Part& part) {
    length_ = part.rows > 0 ? part.rows : part.length;
    for (Input& input : inputs_) {
        const std::size_t numbers = checked_product({length_, static_cast<std::int64_t>(input.numbers)});
        if (input.prompt.size() < dtype_bytes(dtype_, numbers)) input.prompt.resize(dtype_bytes(dtype_, numbers));
    }
}

void PresentExperts::add(std::int64_t index, std::span<const std::byte> record) {
    for (Input& input : inputs_)
        put(input, record, input.prompt.data() + dtype_bytes(dtype_, static_cast<std::size_t>(index) * input.numbers));
}

std::vector<HostInput> PresentExperts::inputs() {
    std::vector<HostInput> found;
    for (Input& input : inputs_) found.push_back(bound(input, 1, length_, input.prompt.data()));
    return found;
}

}  // namespace molkv
