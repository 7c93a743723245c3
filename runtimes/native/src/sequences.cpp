// Prefill, decode, rewind, fork, save and restore.
#include "sequences.h"

#include <algorithm>
#include <limits>
#include <optional>

#include "calls.h"
#include "memory.h"
#include "session_file.h"

namespace molkv {

namespace {

std::int64_t checked_length(const Model& model, std::int64_t max_length) {
    const std::int64_t context = model.config().max_position_embeddings;
    if (max_length < 0 || max_length > context)
        fail(Kind::request, "max_length: found ", max_length, ", expected 1 to ", context,
             " (the context of the model)");
    return max_length == 0 ? context : max_length;
}

// Return the slots of the KV cache. The graphs of static profiles have fixed shapes.
std::int64_t slots(const Model& model, std::int64_t max_length) {
    return is_static(model.bundle().graph()) ? model.config().max_position_embeddings : max_length;
}

// Return the bytes that the sequences and the longest part of a prompt need.
std::size_t state_bytes(const Model& model, std::int64_t batch_size, std::int64_t max_length, std::int64_t chunk) {
    const Bundle& bundle = model.bundle();
    const std::int64_t length = slots(model, max_length);
    const std::size_t window = expert_state_bytes(bundle, length);
    const std::size_t each = KvCache::bytes(bundle.config().caches, bundle.graph().kv_dtype, length) + window +
                             checked_product({bundle.config().vocab_size + max_length, 4});
    // A block of up to W positions needs less than two windows.
    const std::int64_t positions = std::min(chunk, length);
    const std::int64_t blocks = positions / std::max<std::int64_t>(1, bundle.config().expert_window) + 1;
    const std::size_t prompt = checked_product({2 * blocks, static_cast<std::int64_t>(window)}) +
                               checked_product({positions, static_cast<std::int64_t>(model.store().stride())});
    return checked_product({batch_size, static_cast<std::int64_t>(each)}) + prompt;
}

// Check the sizes and the memory for them, and return the size of the batch.
std::size_t checked_batch_size(const Model& model, std::int64_t batch_size, std::int64_t max_length,
                               std::int64_t chunk) {
    constexpr std::int64_t most = std::numeric_limits<std::int32_t>::max();
    if (batch_size < 1 || batch_size > most)
        fail(Kind::request, "batch_size: found ", batch_size, ", expected 1 to ", most);
    if (chunk < 0) fail(Kind::request, "prefill_chunk: found ", chunk, ", expected 1 or more, or 0 for the default");
    const std::size_t bytes = state_bytes(model, batch_size, max_length, chunk > 0 ? chunk : default_chunk(model));
    check_memory(bytes, text(batch_size, " sequences of ", slots(model, max_length), " tokens"));
    return static_cast<std::size_t>(batch_size);
}

std::int64_t common_prefix(std::span<const std::int32_t> first, std::span<const std::int32_t> second) {
    const auto ends = std::mismatch(first.begin(), first.end(), second.begin(), second.end());
    return ends.first - first.begin();
}

}  // namespace

Sequences::Sequences(const Model& model, std::int64_t batch_size, std::int64_t max_length, std::int64_t prefill_chunk,
                     std::atomic<bool>* cancelled)
    : model_(model),
      max_length_(checked_length(model, max_length)),
      lengths_(checked_batch_size(model, batch_size, max_length_, prefill_chunk)),
      ids_(checked_product({batch_size, max_length_})),
      calls_(make_calls(model, static_cast<int>(batch_size), slots(model, max_length_), prefill_chunk)),
      records_(checked_product({batch_size, static_cast<std::int64_t>(model.store().stride())})),
      tokens_(lengths_.size()),
      positions_(lengths_.size()),
      active_(lengths_.size()),
      cancelled_(cancelled) {}

Sequences::~Sequences() = default;

void Sequences::check_sequence(std::int64_t sequence) const {
    if (sequence < 0 || sequence >= batch_size())
        fail(Kind::request, "sequence: found ", sequence, ", expected 0 to ", batch_size() - 1);
}

void Sequences::check_free(int sequence) const {
    check_sequence(sequence);
    if (length(sequence) > 0)
        fail(Kind::request, "sequence: ", sequence, " is in use (it has ", length(sequence),
             " tokens), expected a free sequence; rewind it to 0 first");
}

void Sequences::check_cancelled() {
    if (cancelled_ != nullptr && cancelled_->exchange(false)) fail(Kind::cancelled, "the call was cancelled");
}

std::int64_t Sequences::length(int sequence) const {
    check_sequence(sequence);
    return lengths_[static_cast<std::size_t>(sequence)];
}

std::span<std::int32_t> Sequences::all_ids(int sequence) const {
    const auto size = static_cast<std::size_t>(max_length_);
    return ids_.span().subspan(static_cast<std::size_t>(sequence) * size, size);
}

std::span<const std::int32_t> Sequences::history(int sequence) const {
    return std::span<const std::int32_t>(all_ids(sequence)).first(static_cast<std::size_t>(length(sequence)));
}

std::span<std::byte> Sequences::records_for(std::int64_t count) {
    const std::size_t bytes = checked_product({count, static_cast<std::int64_t>(model_.store().stride())});
    if (chunk_records_.size() < bytes) {
        check_memory(bytes, text(count, " records"));
        chunk_records_ = {};  // before the larger memory is allocated
        chunk_records_ = ZeroedArray<std::byte>(bytes);
    }
    return chunk_records_.span().first(bytes);
}

std::span<const float> Sequences::prefill(int sequence, std::span<const std::int32_t> ids, bool all_logits) {
    const std::int64_t start = length(sequence);
    const auto count = static_cast<std::int64_t>(ids.size());
    if (ids.empty()) fail(Kind::request, "the prompt is empty, expected at least one token");
    if (count > max_length_ - start)
        fail(Kind::request, "the prompt has ", count, " tokens, expected at most ", max_length_ - start,
             " (the rest of max_length ", max_length_, ")");
    model_.check_ids("the prompt", ids);
    const std::size_t numbers = checked_product({all_logits ? count : 1, model_.config().vocab_size});
    if (logits_.size() != numbers) {
        check_memory(numbers * sizeof(float), "logits");
        logits_ = std::vector<float>(numbers);
    }
    run_parts(calls_->parts(sequence, start, count, all_logits), ids);
    // The state changes only now. So it stays as it was if a record cannot be read or the graph fails.
    calls_->finish(sequence, start + count);
    std::copy(ids.begin(), ids.end(), all_ids(sequence).begin() + start);
    lengths_[static_cast<std::size_t>(sequence)] = start + count;
    return logits_;
}

// Run the parts of a prompt one after the other. While a part is computed, the records of the next part are read.
void Sequences::run_parts(std::span<const Part> parts, std::span<const std::int32_t> ids) {
    const std::size_t stride = model_.store().stride();
    std::int64_t longest = 0;
    for (const Part& part : parts) longest = std::max(longest, part.length);
    const std::span<std::byte> memory = records_for(longest);
    const std::int64_t start = parts.front().start;
    const auto ids_of = [&](const Part& part) {
        return ids.subspan(static_cast<std::size_t>(part.start - start), static_cast<std::size_t>(part.length));
    };
    const auto records_of = [&](const Part& part) {
        return memory.first(static_cast<std::size_t>(part.length) * stride);
    };
    std::optional<ReadAhead> ahead;  // its destructor waits for the running read
    std::span<float> logits = logits_;
    for (std::size_t i = 0; i < parts.size(); i++) {
        const Part& part = parts[i];
        check_cancelled();
        if (ahead)
            ahead->wait();
        else
            model_.store().gather(ids_of(part), records_of(part));
        calls_->begin(part);
        for (std::int64_t at = 0; at < part.length; at++)
            calls_->add(at, memory.subspan(static_cast<std::size_t>(at) * stride, stride));
        if (i + 1 < parts.size()) {
            if (!ahead) ahead.emplace(model_.store());
            ahead->start(ids_of(parts[i + 1]), records_of(parts[i + 1]));
        }
        const auto kept = static_cast<std::size_t>(part.keep * model_.config().vocab_size);
        calls_->run(logits.first(kept));
        logits = logits.subspan(kept);
    }
}

std::span<const float> Sequences::decode(std::span<const std::int32_t> ids, std::span<const std::uint8_t> active) {
    if (ids.size() != lengths_.size())
        fail(Kind::request, "found ", ids.size(), " token ids, expected one for each of ", lengths_.size(),
             " sequences");
    if (!active.empty() && active.size() != lengths_.size())
        fail(Kind::request, "active: found ", active.size(), " values, expected one for each of ", lengths_.size(),
             " sequences");
    std::size_t count = 0;
    for (std::size_t i = 0; i < lengths_.size(); i++) {
        positions_[i] = std::min(lengths_[i], max_length_ - 1);
        active_[i] = static_cast<std::uint8_t>(active.empty() || active[i] != 0);
        if (active_[i] == 0) continue;
        if (lengths_[i] >= max_length_)
            fail(Kind::request, "sequence ", i, " has reached max_length (", max_length_,
                 " tokens) and cannot continue");
        tokens_[count++] = ids[i];
    }
    const std::span<const std::int32_t> tokens = std::span(tokens_).first(count);
    model_.check_ids("ids", tokens);
    check_cancelled();
    if (count == 0) return calls_->step_logits();
    const std::size_t stride = model_.store().stride();
    const std::span<std::byte> records = std::span(records_).first(count * stride);
    // The store sorts several ids, for which it needs memory. So each id is a read of its own.
    for (std::size_t i = 0; i < count; i++)
        model_.store().gather(tokens.subspan(i, 1), records.subspan(i * stride, stride));
    calls_->decode(positions_, active_, records);
    for (std::size_t i = 0; i < lengths_.size(); i++)
        if (active_[i] != 0) all_ids(static_cast<int>(i))[static_cast<std::size_t>(lengths_[i]++)] = ids[i];
    return calls_->step_logits();
}

void Sequences::rewind(int sequence, std::int64_t length) {
    const std::int64_t before = this->length(sequence);
    if (length < 0 || length > before)
        fail(Kind::request, "length: found ", length, ", expected 0 to ", before, " (the length of the sequence)");
    // The window has the experts of the last positions before the rewind.
    restore_experts(sequence, history(sequence), length, std::min(length, before - calls_->experts().lookback()));
    lengths_[static_cast<std::size_t>(sequence)] = length;
}

// Read the experts again that the position `length` sees before position `end`. Changes nothing if a record cannot be
// read.
void Sequences::restore_experts(int sequence, std::span<const std::int32_t> ids, std::int64_t length,
                                std::int64_t end) {
    const std::int64_t start = std::max<std::int64_t>(0, length - calls_->experts().lookback());
    if (start >= end) return;
    const std::span<std::byte> records = records_for(end - start);
    model_.store().gather(ids.subspan(static_cast<std::size_t>(start), static_cast<std::size_t>(end - start)), records);
    const std::size_t stride = model_.store().stride();
    for (std::int64_t position = start; position < end; position++)
        calls_->experts().restore(sequence, position,
                                  records.subspan(static_cast<std::size_t>(position - start) * stride, stride));
}

int Sequences::fork(int sequence) {
    const std::int64_t count = length(sequence);
    const auto free = std::find(lengths_.begin(), lengths_.end(), 0);
    if (free == lengths_.end())
        fail(Kind::request, "sequence: found ", lengths_.size(),
             " sequences in use, expected a free one; rewind one to 0");
    const auto copy = static_cast<int>(free - lengths_.begin());
    if (count == 0) return copy;
    restore_experts(copy, history(sequence), count, count);
    calls_->cache().copy(sequence, copy, count);
    std::copy_n(all_ids(sequence).begin(), count, all_ids(copy).begin());
    *free = count;
    return copy;
}

void Sequences::save(int sequence, std::span<const std::int32_t> ids, const std::string& path) const {
    check_sequence(sequence);
    const std::int64_t most = model_.config().max_position_embeddings + 1;
    if (ids.empty() || static_cast<std::int64_t>(ids.size()) > most)
        fail(Kind::request, "the session has ", ids.size(), " tokens, expected 1 to ", most, " to save");
    model_.check_ids("the session", ids);
    write_session(path, model_.bundle(), ids, calls_->cache(), sequence, common_prefix(ids, history(sequence)));
}

std::vector<std::int32_t> Sequences::restore(int sequence, const std::string& path) {
    check_free(sequence);
    const SessionFile file(path, model_.bundle());
    const std::int64_t count = file.length();
    if (count > max_length_)
        fail(Kind::request, path, ": has a KV cache of ", count, " tokens, expected at most ", max_length_,
             " (max_length); create longer sequences");
    const std::span<const std::int32_t> run = std::span(file.ids()).first(static_cast<std::size_t>(count));
    restore_experts(sequence, run, count, count);
    file.read_into(calls_->cache(), sequence);
    std::copy(run.begin(), run.end(), all_ids(sequence).begin());
    lengths_[static_cast<std::size_t>(sequence)] = count;
    return file.ids();
}

}  // namespace molkv
