// The calls of profile "cpu".
#include "calls.h"

#include <algorithm>
#include <numeric>

#include "static_calls.h"

namespace molkv {

Calls::Calls(const Model& model, int batch_size, std::int64_t slots)
    : model_(model),
      cache_(model.config().caches, model.bundle().graph().kv_dtype, batch_size, slots,
             is_static(model.bundle().graph())),
      experts_(make_expert_state(model.bundle(), model.decoder(), batch_size, slots)),
      step_logits_(checked_product({batch_size, model.config().vocab_size})) {}

DynamicCalls::DynamicCalls(const Model& model, int batch_size, std::int64_t max_length, std::int64_t chunk)
    : Calls(model, batch_size, max_length),
      max_length_(max_length),
      chunk_(chunk > 0 ? chunk : default_chunk(model)),
      has_positions_(model.bundle().family().has_position_ids(model.config())),
      graph_(*model.graphs().at(0)),
      step_call_(graph_),
      prompt_call_(graph_) {
    for (std::size_t tensor = 0; tensor < cache_.tensors(); tensor++) {
        past_.push_back({"past_key_values." + cache_.name(tensor), tensor});
        present_.push_back({"present." + cache_.name(tensor), tensor});
    }
    for (const auto& [layer, source] : model.config().shared_caches) {
        present_.push_back({text("present.", layer, ".key"), 2 * source});
        present_.push_back({text("present.", layer, ".value"), 2 * source + 1});
    }
    const auto sequences = static_cast<std::size_t>(batch_size);
    step_.embeds.resize(sequences * hidden_size());
    step_.positions.resize(sequences);
    step_.seqlens.resize(sequences);
    bind_inputs(step_call_, step_, batch_size, 1);
    for (const HostInput& input : experts_->decode_inputs())
        step_call_.input(input.name, input.dtype, input.shape, input.data);
    bind_cache(step_call_, 0, batch_size);
    const std::array<std::int64_t, 3> shape = {batch_size, 1, model.config().vocab_size};
    step_call_.output("logits", DType::float32, shape, step_logits_.data());
}

void DynamicCalls::bind_inputs(BoundCall& call, Inputs& inputs, std::int64_t sequences, std::int64_t length) const {
    const std::array<std::int64_t, 3> embeds = {sequences, length, model_.config().hidden_size};
    const std::array<std::int64_t, 2> positions = {sequences, length};
    const std::array<std::int64_t, 1> one = {1};
    call.input("inputs_embeds", DType::float32, embeds, inputs.embeds.data());
    if (has_positions_) call.input("position_ids", DType::int64, positions, inputs.positions.data());
    call.input("seqlens_k", DType::int32, std::span(positions).first(1), inputs.seqlens.data());
    call.input("total_sequence_length", DType::int32, {}, &inputs.total);
    call.input("logits_to_keep", DType::int64, one, &inputs.logits_to_keep);
}

void DynamicCalls::bind_cache(BoundCall& call, int sequence, std::int64_t sequences) {
    const auto shape = [&](std::size_t tensor) {
        return std::array<std::int64_t, 4>{sequences, cache_.heads(tensor), max_length_, cache_.head_dim(tensor)};
    };
    for (const auto& [name, tensor] : past_)
        call.input(name, cache_.dtype(), shape(tensor), cache_.data(tensor, sequence));
    for (const auto& [name, tensor] : present_)
        call.output(name, cache_.dtype(), shape(tensor), cache_.data(tensor, sequence));
}

std::vector<Part> DynamicCalls::parts(int sequence, std::int64_t start, std::int64_t length, bool all_logits) const {
    // A part longer than a block is a multiple of it. A model without a window takes parts of any length.
    const std::int64_t block = std::max<std::int64_t>(1, experts_->block_length());
    const std::int64_t step = chunk_ <= block ? chunk_ : chunk_ - chunk_ % block;
    const std::int64_t whole = chunk_ <= block ? length : length - length % block;
    std::vector<Part> found;
    for (std::int64_t at = 0; at < length;) {
        const std::int64_t end = at < whole ? std::min(at + step, whole) : length;
        // The LM head is a large part of the work, so it computes only the logits that are wanted.
        const std::int64_t keep = all_logits ? end - at : static_cast<std::int64_t>(end == length);
        found.push_back(
            {.sequence = sequence, .start = start + at, .length = end - at, .follows = at > 0, .keep = keep});
        at = end;
    }
    return found;
}

void DynamicCalls::begin(const Part& part) {
    part_ = part;
    const auto length = static_cast<std::size_t>(part.length);
    prompt_.embeds.resize(length * hidden_size());
    prompt_.positions.resize(length);
    std::iota(prompt_.positions.begin(), prompt_.positions.end(), part.start);
    prompt_.total = static_cast<std::int32_t>(part.start + part.length);
    prompt_.seqlens.assign(1, prompt_.total - 1);
    prompt_.logits_to_keep = part.keep;
    experts_->begin(part);
}

void DynamicCalls::add(std::int64_t index, std::span<const std::byte> record) {
    const std::size_t row = static_cast<std::size_t>(index) * hidden_size();
    model_.decoder().embedding(record, std::span(prompt_.embeds).subspan(row, hidden_size()));
    experts_->add(index, record);
}

void DynamicCalls::run(std::span<float> logits) {
    bind_inputs(prompt_call_, prompt_, 1, part_.length);
    for (const HostInput& input : experts_->inputs())
        prompt_call_.input(input.name, input.dtype, input.shape, input.data);
    if (prompt_sequence_ != part_.sequence) bind_cache(prompt_call_, part_.sequence, 1);
    prompt_sequence_ = part_.sequence;
    const std::array<std::int64_t, 3> shape = {1, part_.keep, model_.config().vocab_size};
    prompt_call_.output("logits", DType::float32, shape, logits.data());
    prompt_call_.run();
}

void DynamicCalls::place(std::span<const std::int64_t> positions, std::span<const std::uint8_t> active,
                         std::span<const std::byte> records) {
    std::int64_t longest = 0;
    std::size_t number = 0;
    for (std::size_t i = 0; i < positions.size(); i++) {
        const std::int64_t position = positions[i];
        // A sequence that waits gets an arbitrary token: that of the first active sequence.
        const auto own = record(records, active[i] != 0 ? number++ : 0);
        model_.decoder().embedding(own, std::span(step_.embeds).subspan(i * hidden_size(), hidden_size()));
        experts_->decode(static_cast<int>(i), position, own);
        step_.positions[i] = position;
        step_.seqlens[i] = static_cast<std::int32_t>(position);
        longest = std::max(longest, position + 1);
    }
    step_.total = static_cast<std::int32_t>(longest);
}

void DynamicCalls::decode(std::span<const std::int64_t> positions, std::span<const std::uint8_t> active,
                          std::span<const std::byte> records) {
    // The graph also computes the sequences that wait. In a full one it overwrites the last slot, which is put back.
    const auto is_full = [&](std::size_t i) { return active[i] == 0 && positions[i] == max_length_ - 1; };
    for (std::size_t i = 0; i < positions.size(); i++)
        if (is_full(i)) cache_.keep_last(static_cast<int>(i));
    const auto put_back = [&] {
        for (std::size_t i = 0; i < positions.size(); i++)
            if (is_full(i)) cache_.put_back_last(static_cast<int>(i));
    };
    place(positions, active, records);
    try {
        step_call_.run();
    } catch (...) {
        put_back();
        throw;
    }
    put_back();
}

std::int64_t default_chunk(const Model& model) {
    return is_static(model.bundle().graph()) ? model.graphs().rbegin()->first : 128;
}

std::unique_ptr<Calls> make_calls(const Model& model, int batch_size, std::int64_t slots, std::int64_t chunk) {
    if (is_static(model.bundle().graph())) return std::make_unique<StaticCalls>(model, batch_size, chunk);
    return std::make_unique<DynamicCalls>(model, batch_size, slots, chunk);
}

}  // namespace molkv
