// The inputs and outputs of static graphs, and the choice of the graphs for a prompt.
#include "static_calls.h"

#include <algorithm>
#include <cstring>

#include "host_numbers.h"

namespace molkv {

StaticGraph::StaticGraph(const Model& model, const GraphSession& session, const KvCache& cache)
    : model_(model),
      session_(session),
      dtype_(cache.dtype()),
      context_(static_cast<std::size_t>(model.config().max_position_embeddings)),
      present_bytes_(checked_product(
          {cache.heads(0), length(), cache.head_dim(0), static_cast<std::int64_t>(dtype_bytes(dtype_, 1))})) {
    const ModelConfig& config = model.config();
    add_rows("inputs_embeds", config.hidden_size);
    std::vector<Rotation> rotations = {{"", cache.head_dim(0)}};
    const auto of_experts = model.bundle().family().expert_rotations(config);
    rotations.insert(rotations.end(), of_experts.begin(), of_experts.end());
    for (const Rotation& rotation : rotations)
        for (const char* function : {"rotary_cos", "rotary_sin"}) add_rows(rotation.prefix + function, rotation.size);
    present_ = ZeroedArray<std::byte>(
        checked_product({static_cast<std::int64_t>(cache.tensors()), static_cast<std::int64_t>(present_bytes_)}));
    make_mask();
}

void StaticGraph::add_rows(const std::string& name, std::int64_t numbers) {
    const std::size_t all = checked_product({length(), numbers});
    rows_.push_back({name, static_cast<std::size_t>(numbers), ZeroedArray<std::byte>(dtype_bytes(dtype_, all))});
    scratch_.resize(std::max(scratch_.size(), rows_.back().numbers));
}

// Make the causal mask, which hides the whole cache. It also hides padding, which follows the tokens.
void StaticGraph::make_mask() {
    const ModelConfig& config = model_.config();
    const std::int64_t groups = config.num_attention_heads / config.caches.front().heads;
    const auto positions = static_cast<std::size_t>(length());
    const std::size_t columns = context_ + positions;
    mask_rows_ = checked_product({groups, length()});
    const std::size_t numbers =
        checked_product({static_cast<std::int64_t>(mask_rows_), static_cast<std::int64_t>(columns)});
    mask_ = ZeroedArray<std::byte>(dtype_bytes(dtype_, numbers));
    fill_numbers(mask_.data(), dtype_, 0, numbers, hidden_score(model_.bundle().graph()));
    for (std::size_t i = 0; i < mask_rows_; i++)
        fill_numbers(mask_.data(), dtype_, i * columns + context_, i % positions + 1, 0);
}

void StaticGraph::show_slots(std::int64_t count) {
    const auto wanted = static_cast<std::size_t>(count);
    const std::size_t columns = context_ + static_cast<std::size_t>(length());
    const float value = wanted > shown_ ? 0 : hidden_score(model_.bundle().graph());
    const std::size_t first = std::min(wanted, shown_);
    const std::size_t changed = std::max(wanted, shown_) - first;
    if (changed == 0) return;
    for (std::size_t i = 0; i < mask_rows_; i++)
        fill_numbers(mask_.data(), dtype_, i * columns + first, changed, value);
    shown_ = wanted;
}

std::byte* StaticGraph::row(const Rows& rows, std::int64_t index) const {
    return rows.data.data() + dtype_bytes(dtype_, static_cast<std::size_t>(index) * rows.numbers);
}

std::byte* StaticGraph::present(std::size_t tensor) const {
    return present_.data() + tensor * present_bytes_;
}

void* StaticGraph::input_data(const std::string& name) const {
    if (name == "attention_mask") return mask_.data();
    const auto found = std::find_if(rows_.begin(), rows_.end(), [&](const Rows& rows) { return rows.name == name; });
    return found == rows_.end() ? nullptr : found->data.data();
}

void StaticGraph::bind(BoundCall& call, const KvCache& cache, int sequence, std::span<const HostInput> experts,
                       std::size_t offset, float* logits) const {
    const auto shape_of = [](const TensorInfo& info) {
        std::vector<std::int64_t> shape;
        for (const Dimension& dimension : info.shape) shape.push_back(dimension.size);
        return shape;
    };
    const auto bind_to = [&](const TensorInfo& info, bool is_input, void* data) {
        if (is_input)
            call.input(info.name, info.dtype, shape_of(info), data);
        else
            call.output(info.name, info.dtype, shape_of(info), data);
    };
    for (const TensorInfo& info : session_.file().inputs) {
        if (void* data = input_data(info.name)) bind_to(info, true, data);
        for (const HostInput& input : experts) {
            if (input.name != info.name) continue;
            const auto shape = shape_of(info);
            std::size_t numbers = 1;
            for (const std::int64_t size : shape) numbers *= static_cast<std::size_t>(size);
            bind_to(info, true, static_cast<std::byte*>(input.data) + dtype_bytes(info.dtype, offset * numbers));
        }
        for (std::size_t tensor = 0; tensor < cache.tensors(); tensor++)
            if (info.name == "past_key_values." + cache.name(tensor)) bind_to(info, true, cache.data(tensor, sequence));
    }
    for (const TensorInfo& info : session_.file().outputs) {
        if (info.name == "logits") bind_to(info, false, logits);
        for (std::size_t tensor = 0; tensor < cache.tensors(); tensor++)
            if (info.name == "present." + cache.name(tensor)) bind_to(info, false, present(tensor));
    }
}

void StaticGraph::embed(std::int64_t index, std::span<const std::byte> record) {
    const std::span<float> numbers = std::span(scratch_).first(rows_[0].numbers);
    model_.decoder().embedding(record, numbers);
    store_numbers(numbers, dtype_, row(rows_[0], index));
}

void StaticGraph::pad(const Rows& rows, std::int64_t count) const {
    const std::byte* last = row(rows, count - 1);
    for (std::int64_t i = count; i < length(); i++) std::memcpy(row(rows, i), last, dtype_bytes(dtype_, rows.numbers));
}

void StaticGraph::place(std::int64_t start, std::int64_t count, std::span<RotaryInputs> rotations) {
    show_slots(start);
    for (std::size_t i = 0; i < rotations.size(); i++) {
        RotaryTable& table = rotations[i].table;
        const Rows& cosines = rows_[1 + 2 * i];
        const Rows& sines = rows_[2 + 2 * i];
        const std::size_t half = cosines.numbers / 2;
        for (std::int64_t at = 0; at < count; at++) {
            // The graph computes x * [cos, cos] + [second half of x, first half of x] * [-sin, sin].
            const auto cosine = table.cosines(start + at);
            std::copy_n(cosine.data(), half, scratch_.data());
            std::copy_n(cosine.data(), half, scratch_.data() + half);
            store_numbers(std::span(scratch_).first(2 * half), dtype_, row(cosines, at));
            const auto sine = table.sines(start + at);
            std::transform(sine.begin(), sine.end(), scratch_.begin(), [](float number) { return -number; });
            std::copy_n(sine.data(), half, scratch_.data() + half);
            store_numbers(std::span(scratch_).first(2 * half), dtype_, row(sines, at));
        }
    }
    for (const Rows& rows : rows_) pad(rows, count);
}

void StaticGraph::write_back(KvCache& cache, int sequence, std::int64_t start, std::int64_t count) const {
    for (std::size_t tensor = 0; tensor < cache.tensors(); tensor++)
        cache.append(tensor, sequence, start, count, length(), present(tensor));
}

StaticCalls::StaticCalls(const Model& model, int batch_size, std::int64_t chunk)
    : Calls(model, batch_size, model.config().max_position_embeddings) {
    const ModelConfig& config = model.config();
    const std::int64_t context = config.max_position_embeddings;
    rotations_.push_back({"", RotaryTable(context, cache_.head_dim(0), config.rope_theta)});
    for (const Rotation& rotation : model.bundle().family().expert_rotations(config))
        rotations_.push_back({rotation.prefix, RotaryTable(context, rotation.size, config.rope_theta)});
    for (const auto& [length, session] : model.graphs()) {
        if (length > 1 && chunk > 0 && length > chunk) continue;
        if (length > 1) lengths_.push_back(length);
        prompts_.push_back({std::make_unique<StaticGraph>(model, *session, cache_), BoundCall(*session)});
    }
    const auto inputs = experts_->decode_inputs();
    for (int sequence = 0; sequence < batch_size; sequence++) {
        const auto number = static_cast<std::size_t>(sequence);
        const StaticGraph& graph = *prompts_.front().graph;
        steps_.emplace_back(graph.session());
        graph.bind(steps_.back(), cache_, sequence, inputs, number, step_logits_.data() + number * vocab_size());
    }
}

std::vector<Part> StaticCalls::without_logits(int sequence, std::int64_t start, std::int64_t length) const {
    std::vector<Part> found;
    for (std::int64_t at = 0; at < length;) {
        const std::int64_t left = length - at;
        std::int64_t rows = lengths_.empty() || left == 1 ? 1 : lengths_.front();
        for (const std::int64_t fitting : lengths_)
            if (fitting <= left) rows = fitting;
        found.push_back({.sequence = sequence,
                         .start = start + at,
                         .length = std::min(rows, left),
                         .rows = rows,
                         .follows = at > 0});
        at += rows;
    }
    return found;
}

std::vector<Part> StaticCalls::parts(int sequence, std::int64_t start, std::int64_t length, bool all_logits) const {
    std::vector<Part> found = without_logits(sequence, start, length - 1);
    // Only the graph for one position returns logits. It then runs every position again, and the keys and values that
    // the other graphs gave stay.
    if (all_logits) std::erase_if(found, [](const Part& part) { return part.rows == 1; });
    std::int64_t written = 0;
    for (const Part& part : found) written += part.length;
    for (std::int64_t at = all_logits ? 0 : length - 1; at < length; at++)
        found.push_back({.sequence = sequence,
                         .start = start + at,
                         .length = 1,
                         .rows = 1,
                         .follows = at > 0,
                         .keep = 1,
                         .writes = at >= written});
    return found;
}

void StaticCalls::begin(const Part& part) {
    part_ = part;
    const auto is_wanted = [&](const Prompt& prompt) { return prompt.graph->length() == part.rows; };
    current_ = &*std::find_if(prompts_.begin(), prompts_.end(), is_wanted);
    experts_->begin(part);
}

void StaticCalls::add(std::int64_t index, std::span<const std::byte> record) {
    current_->graph->embed(index, record);
    experts_->add(index, record);
}

void StaticCalls::run(std::span<float> logits) {
    // A call without wanted logits writes them to the memory of the decode step, whose logits are out of date.
    float* into = part_.keep > 0 ? logits.data() : step_logits_.data();
    current_->graph->bind(current_->call, cache_, part_.sequence, experts_->inputs(), 0, into);
    current_->graph->place(part_.start, part_.length, rotations_);
    current_->call.run();
    if (part_.writes) current_->graph->write_back(cache_, part_.sequence, part_.start, part_.length);
}

void StaticCalls::decode(std::span<const std::int64_t> positions, std::span<const std::uint8_t> active,
                         std::span<const std::byte> records) {
    StaticGraph& graph = *prompts_.front().graph;
    std::size_t number = 0;
    for (std::size_t i = 0; i < positions.size(); i++) {
        if (active[i] == 0) continue;
        const auto own = record(records, number++);
        experts_->decode(static_cast<int>(i), positions[i], own);
        graph.embed(0, own);
        graph.place(positions[i], 1, rotations_);
        steps_[i].run();
        graph.write_back(cache_, static_cast<int>(i), positions[i], 1);
    }
}

}  // namespace molkv
