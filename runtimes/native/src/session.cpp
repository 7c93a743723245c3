// Texts with pending ids on top of Sequences.
#include "session.h"

#include <algorithm>

namespace molkv {

Session::Session(const Model& model, std::int64_t batch_size, std::int64_t max_length, std::int64_t prefill_chunk)
    : model_(model),
      prefill_chunk_(prefill_chunk),
      sequences_(std::make_unique<Sequences>(model, batch_size, max_length, prefill_chunk, &cancelled_)),
      max_length_(sequences_->max_length()),
      texts_(static_cast<std::size_t>(batch_size)),
      last_ids_(static_cast<std::size_t>(batch_size)) {
    for (auto& each : texts_) each.reserve(static_cast<std::size_t>(max_length_) + 1);
}

int Session::check_sequence(std::int64_t sequence) const {
    if (sequence < 0 || sequence >= batch_size()) {
        fail(Kind::request, "sequence: found ", sequence, ", expected 0 to ", batch_size() - 1);
    }
    return static_cast<int>(sequence);
}

std::span<const std::int32_t> Session::ids(std::int64_t sequence) const {
    return texts_[static_cast<std::size_t>(check_sequence(sequence))];
}

std::span<const std::int32_t> Session::pending(int sequence) {
    return std::span<const std::int32_t>(text(sequence))
        .subspan(static_cast<std::size_t>(sequences_->length(sequence)));
}

// After an error of another kind, the KV cache may hold wrong numbers. So new sequences replace the old ones.
void Session::make_sound() {
    if (sound_) return;
    sequences_.reset();  // frees the memory before the new ones need it
    sequences_ = std::make_unique<Sequences>(model_, batch_size(), max_length_, prefill_chunk_, &cancelled_);
    sound_ = true;
}

template <typename Call>
auto Session::guarded(const Call& call) {
    make_sound();
    try {
        return call();
    } catch (const Error& error) {
        sound_ = error.kind() == Kind::request || error.kind() == Kind::cancelled;
        throw;
    } catch (...) {
        sound_ = false;
        throw;
    }
}

std::span<const float> Session::append(int sequence, std::span<const std::int32_t> ids) {
    return guarded([&] {
        auto& own = text(sequence);
        if (ids.empty() && !own.empty() && pending(sequence).empty()) {
            sequences_->rewind(sequence, sequences_->length(sequence) - 1);  // the last id is run again for its logits
        }
        const auto before = pending(sequence);
        joined_.assign(before.begin(), before.end());
        joined_.insert(joined_.end(), ids.begin(), ids.end());
        const auto logits = sequences_->prefill(sequence, joined_);
        own.insert(own.end(), ids.begin(), ids.end());
        return logits;
    });
}

std::span<const float> Session::prefill(std::int64_t sequence, std::span<const std::int32_t> ids) {
    const int checked = check_sequence(sequence);
    if (ids.empty()) fail(Kind::request, "ids: found none, expected at least one token id");
    model_.check_ids("ids", ids);
    const auto length = static_cast<std::int64_t>(text(checked).size() + ids.size());
    if (length > max_length_) {
        fail(Kind::request, "the sequence has ", length, " tokens with these ids, expected at most ", max_length_,
             " (max_length); shorten it with rewind");
    }
    ++generation_;
    return append(checked, ids);
}

std::span<const float> Session::decode(std::span<const std::int32_t> ids, std::span<const std::uint8_t> active) {
    const auto goes = [&](int sequence) { return active.empty() || active[static_cast<std::size_t>(sequence)] != 0; };
    for (int sequence = 0; sequence < batch_size(); sequence++) {
        if (!goes(sequence)) continue;
        model_.check_ids("ids", ids.subspan(static_cast<std::size_t>(sequence), 1));
        if (static_cast<std::int64_t>(text(sequence).size()) < max_length_) continue;
        fail(Kind::request, "sequence ", sequence, " has ", text(sequence).size(), " tokens, expected fewer than ",
             max_length_, " (max_length); shorten it with rewind");
    }
    ++generation_;
    return guarded([&] {
        for (int sequence = 0; sequence < batch_size(); sequence++) {
            if (goes(sequence) && !pending(sequence).empty()) sequences_->prefill(sequence, pending(sequence));
        }
        const auto logits = sequences_->decode(ids, active);
        for (int sequence = 0; sequence < batch_size(); sequence++) {
            if (goes(sequence)) push(sequence, ids[static_cast<std::size_t>(sequence)]);
        }
        return logits;
    });
}

std::span<const float> Session::step(std::span<const std::uint8_t> active) {
    return guarded([&] {
        for (std::size_t sequence = 0; sequence < texts_.size(); sequence++) {
            last_ids_[sequence] = active[sequence] != 0 ? texts_[sequence].back() : 0;
        }
        return sequences_->decode(last_ids_, active);
    });
}

void Session::rewind(std::int64_t sequence, std::int64_t length) {
    const int checked = check_sequence(sequence);
    auto& own = text(checked);
    if (length < 0 || length > static_cast<std::int64_t>(own.size())) {
        fail(Kind::request, "length: found ", length, ", expected 0 to ", own.size(), " (the tokens of sequence ",
             checked, ")");
    }
    ++generation_;
    guarded([&] {
        if (length < sequences_->length(checked)) sequences_->rewind(checked, length);
    });
    own.resize(static_cast<std::size_t>(length));
}

int Session::fork(std::int64_t sequence) {
    const int checked = check_sequence(sequence);
    if (text(checked).empty()) fail(Kind::request, "sequence ", checked, " is empty, expected at least one token");
    if (std::none_of(texts_.begin(), texts_.end(), [](const auto& each) { return each.empty(); })) {
        fail(Kind::request, "sequence: found ", batch_size(),
             " sequences in use, expected a free one; rewind one to 0");
    }
    ++generation_;
    return guarded([&] {
        // A sequence of which nothing was run looks free to Sequences.
        for (int each = 0; each < batch_size(); each++) {
            if (text(each).empty() || sequences_->length(each) > 0) continue;
            const auto ids = pending(each);  // of a full text, the last id is never run
            sequences_->prefill(each, ids.first(std::min(ids.size(), static_cast<std::size_t>(max_length_))));
        }
        const int copy = sequences_->fork(checked);
        text(copy).assign(text(checked).begin(), text(checked).end());
        return copy;
    });
}

void Session::save(std::int64_t sequence, const std::string& path) {
    const int checked = check_sequence(sequence);
    if (text(checked).empty()) fail(Kind::request, "sequence ", checked, " is empty, expected at least one token");
    make_sound();
    sequences_->save(checked, text(checked), path);
}

void Session::restore(std::int64_t sequence, const std::string& path) {
    const int checked = check_sequence(sequence);
    if (!text(checked).empty()) {
        fail(Kind::request, "sequence ", checked, " has ", text(checked).size(),
             " tokens, expected an empty sequence; rewind it to 0");
    }
    ++generation_;
    guarded([&] {
        const auto ids = sequences_->restore(checked, path);
        if (static_cast<std::int64_t>(ids.size()) > max_length_ + 1) {
            sequences_->rewind(checked, 0);
            fail(Kind::request, path, ": found ", ids.size(), " tokens, expected at most ", max_length_ + 1,
                 " (max_length + 1); create the session with a larger max_length");
        }
        text(checked).assign(ids.begin(), ids.end());
    });
}

}  // namespace molkv
