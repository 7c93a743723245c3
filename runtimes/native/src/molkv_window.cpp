// The rings and blocks of the expert window.
#include "molkv_window.h"

#include <algorithm>
#include <bit>
#include <cstring>

#include "host_numbers.h"

namespace molkv {

namespace {

// Return the slots of a ring. In profile "cpu" a shorter sequence never fills W slots; static graphs have fixed shapes.
std::int64_t ring_slots(const Bundle& bundle, std::int64_t max_length) {
    const std::int64_t window = bundle.config().expert_window;
    return is_static(bundle.graph()) ? window : std::min(window, max_length);
}

bool is_int8(const Graph& graph) {
    return !is_static(graph) && graph.window_dtype == DType::int8;
}

// Round a vector to int8 codes. Returns their scale (docs/bundle-format.md, "Int8 window").
float round_vector(std::span<const float> numbers, std::int8_t* codes) {
    // The bits of magnitudes have the order of the magnitudes. Compilers vectorize the maximum of integers.
    std::int32_t largest = 0;
    for (const float number : numbers)
        largest = std::max(largest, std::bit_cast<std::int32_t>(number) & std::int32_t{0x7fffffff});
    constexpr float smallest = 0x1p-126F;
    const float scale = std::bit_cast<float>(largest) / 127.0F;
    if (!(scale >= smallest)) {
        std::fill_n(codes, numbers.size(), std::int8_t{0});
        return 0;
    }
    // The sum with 1.5 * 2^23 is rounded to an integer, ties to even; its low bits are the code.
    constexpr float shift = 0x1.8p23F;
    for (std::size_t i = 0; i < numbers.size(); i++)
        codes[i] = static_cast<std::int8_t>(std::bit_cast<std::uint32_t>(numbers[i] / scale + shift) & 0xffU);
    return scale;
}

}  // namespace

std::size_t ExpertWindow::bytes(const Bundle& bundle, std::int64_t max_length) {
    const ModelConfig& config = bundle.config();
    const auto number = static_cast<std::int64_t>(dtype_bytes(input_dtype(bundle.graph()), 1));
    const std::int64_t value = is_int8(bundle.graph()) ? config.hidden_size + 4 : number * config.hidden_size;
    return checked_product({ring_slots(bundle, max_length), config.num_experts, number * config.expert_key_size + value,
                            static_cast<std::int64_t>(config.expert_layers.size())});
}

ExpertWindow::ExpertWindow(const Bundle& bundle, const RecordDecoder& decoder, int batch_size, std::int64_t max_length)
    : decoder_(decoder),
      layers_(bundle.config().expert_layers),
      batch_size_(static_cast<std::size_t>(batch_size)),
      window_(ring_slots(bundle, max_length)),
      experts_(bundle.config().num_experts),
      key_size_(bundle.config().expert_key_size),
      value_size_(bundle.config().hidden_size),
      dtype_(input_dtype(bundle.graph())),
      hidden_(hidden_score(bundle.graph())),
      visible_(batch_size_, 0),
      mask_for_{-1, -1, -1} {
    const auto vectors = bundle.family().record_vectors(bundle.config());
    for (std::size_t i = 0; i < vectors.size(); i++) (vectors[i].name == "key" ? key_vector_ : value_vector_) = i;
    if (bundle.config().expert_rope) rotary_.emplace(max_length, key_size_, bundle.config().rope_theta);
    add_rows("expert_key", dtype_, key_size_);
    add_rows("expert_value", is_int8(bundle.graph()) ? DType::int8 : dtype_, value_size_);
    if (is_int8(bundle.graph())) add_rows("expert_value_scale", DType::float32, 1);
    scratch_.resize(checked_product({experts_, std::max(key_size_, value_size_)}));
    const std::size_t numbers = checked_product({batch_size, window_, experts_});
    mask_ = ZeroedArray<std::byte>(dtype_bytes(dtype_, numbers));
    fill_numbers(mask_.data(), dtype_, 0, numbers, hidden_);
}

void ExpertWindow::add_rows(const std::string& name, DType dtype, std::int64_t vector_size) {
    const auto bytes = dtype_bytes(dtype, checked_product({experts_, vector_size}));
    const auto size =
        checked_product({static_cast<std::int64_t>(layers_.size()), static_cast<std::int64_t>(batch_size_), window_,
                         static_cast<std::int64_t>(bytes)});
    rows_.push_back({name, dtype, vector_size, bytes, ZeroedArray<std::byte>(size), {}});
}

std::byte* ExpertWindow::slot(const Rows& rows, std::size_t layer, int sequence, std::int64_t position) const {
    const std::size_t ring = layer * batch_size_ + static_cast<std::size_t>(sequence);
    const auto slots = static_cast<std::size_t>(window_);
    return rows.ring.data() + (ring * slots + static_cast<std::size_t>(position) % slots) * rows.bytes;
}

std::byte* ExpertWindow::block_row(const Rows& rows, std::size_t layer, std::int64_t row) const {
    return rows.blocks.data() + (layer * capacity_ + static_cast<std::size_t>(row)) * rows.bytes;
}

std::vector<HostInput> ExpertWindow::named(std::byte* mask, std::int64_t blocks, std::int64_t block, std::int64_t reach,
                                           bool rings) const {
    std::vector<HostInput> found = {{"expert_mask", dtype_, {blocks, block, reach * experts_}, mask}};
    for (std::size_t layer = 0; layer < layers_.size(); layer++) {
        for (const Rows& rows : rows_) {
            std::vector<std::int64_t> shape = {blocks, reach * experts_, rows.vector_size};
            if (&rows == &rows_.back() && rows_.size() == 3) shape = {blocks, 1, reach * experts_};
            std::byte* data = rings ? slot(rows, layer, 0, 0) : block_row(rows, layer, 0);
            found.push_back({text(rows.name, ".", layers_[layer]), rows.dtype, std::move(shape), data});
        }
    }
    return found;
}

std::vector<HostInput> ExpertWindow::decode_inputs() {
    return named(mask_.data(), static_cast<std::int64_t>(batch_size_), 1, window_, true);
}

void ExpertWindow::decode(int sequence, std::int64_t position, std::span<const std::byte> record) {
    restore(sequence, position, record);
    const auto slots = static_cast<std::size_t>(std::min(position + 1, window_));
    const std::size_t visible = slots * static_cast<std::size_t>(experts_);
    std::size_t& before = visible_[static_cast<std::size_t>(sequence)];
    if (visible == before) return;
    const std::size_t row = static_cast<std::size_t>(sequence) * static_cast<std::size_t>(window_ * experts_);
    if (visible > before)
        fill_numbers(mask_.data(), dtype_, row + before, visible - before, 0);
    else
        fill_numbers(mask_.data(), dtype_, row + visible, before - visible, hidden_);
    before = visible;
}

void ExpertWindow::restore(int sequence, std::int64_t position, std::span<const std::byte> record) {
    for (std::size_t layer = 0; layer < layers_.size(); layer++) {
        Place place{};
        for (std::size_t i = 0; i < rows_.size(); i++) place[i] = slot(rows_[i], layer, sequence, position);
        put(record, layer, position, place);
    }
}

void ExpertWindow::put(std::span<const std::byte> record, std::size_t layer, std::int64_t position,
                       const Place& place) {
    const auto count = static_cast<std::size_t>(experts_ * key_size_);
    const bool direct = dtype_ == DType::float32;
    const std::span<float> keys(direct ? reinterpret_cast<float*>(place[0]) : scratch_.data(), count);
    decoder_.vector(record, layer, key_vector_, keys);
    if (rotary_) rotary_->rotate(keys, position);
    if (!direct) store_numbers(keys, dtype_, place[0]);
    put_value(record, layer, place);
}

void ExpertWindow::put_value(std::span<const std::byte> record, std::size_t layer, const Place& place) {
    const auto experts = static_cast<std::size_t>(experts_);
    const auto size = static_cast<std::size_t>(value_size_);
    const std::span<float> numbers = std::span(scratch_).first(experts * size);
    if (rows_[1].dtype == DType::float32) {
        decoder_.vector(record, layer, value_vector_, {reinterpret_cast<float*>(place[1]), experts * size});
    } else if (rows_[1].dtype == DType::float16) {
        decoder_.vector(record, layer, value_vector_, numbers);
        store_numbers(numbers, DType::float16, place[1]);
    } else if (decoder_.has_codes(value_vector_)) {
        const auto codes = decoder_.codes(record, layer, value_vector_);
        std::memcpy(place[1], codes.data(), experts * size);
        decoder_.scales(record, layer, value_vector_, {reinterpret_cast<float*>(place[2]), experts});
    } else {
        decoder_.vector(record, layer, value_vector_, numbers);
        auto* codes = reinterpret_cast<std::int8_t*>(place[1]);
        auto* scales = reinterpret_cast<float*>(place[2]);
        for (std::size_t i = 0; i < experts; i++)
            scales[i] = round_vector(numbers.subspan(i * size, size), codes + i * size);
    }
}

void ExpertWindow::begin(const Part& part) {
    block_ = part.rows > 0 ? part.rows : std::min(part.length, window_);
    const std::int64_t length = part.rows > 0 ? part.rows : part.length;
    const std::int64_t count = length / block_;
    reserve_blocks(part, count * (block_ + lookback()));
    part_ = part;
    blocks_ = count;
    // Each position sees W rows. The last position of the part sees those that begin here.
    const std::int64_t last = part.length - (count - 1) * block_;
    latest_ = (count - 1) * (block_ + lookback()) + last - 1;
}

// Provide room for `count` rows in each layer, and fill the rows of the positions before the part.
void ExpertWindow::reserve_blocks(const Part& part, std::int64_t count) {
    const auto needed = static_cast<std::size_t>(count);
    if (needed <= capacity_) return fill_lookback(part);
    std::vector<ZeroedArray<std::byte>> grown;
    for (Rows& rows : rows_)
        grown.emplace_back(
            checked_product({static_cast<std::int64_t>(layers_.size()), count, static_cast<std::int64_t>(rows.bytes)}));
    if (part.follows) {  // the previous part is in the old memory
        for (std::size_t i = 0; i < rows_.size(); i++) {
            const std::size_t bytes = static_cast<std::size_t>(lookback()) * rows_[i].bytes;
            for (std::size_t layer = 0; layer < layers_.size() && bytes > 0; layer++)
                std::memcpy(grown[i].data() + layer * needed * rows_[i].bytes, block_row(rows_[i], layer, latest_ + 1),
                            bytes);
        }
    }
    for (std::size_t i = 0; i < rows_.size(); i++) rows_[i].blocks = std::move(grown[i]);
    capacity_ = needed;
    if (!part.follows) fill_lookback(part);
}

void ExpertWindow::fill_lookback(const Part& part) {
    const auto before = std::min(part.start, lookback());  // number of positions that exist
    for (const Rows& rows : rows_) {
        for (std::size_t layer = 0; layer < layers_.size(); layer++) {
            std::byte* first = block_row(rows, layer, 0);
            if (part.follows) {
                std::memmove(first, block_row(rows, layer, latest_ + 1),
                             static_cast<std::size_t>(lookback()) * rows.bytes);
                continue;
            }
            for (std::int64_t i = before; i > 0; i--)
                std::memcpy(block_row(rows, layer, lookback() - i), slot(rows, layer, part.sequence, part.start - i),
                            rows.bytes);
        }
    }
}

void ExpertWindow::add(std::int64_t index, std::span<const std::byte> record) {
    const std::int64_t number = index / block_;
    const std::int64_t in_block = index % block_;
    const std::int64_t reach = block_ + lookback();
    const std::int64_t row = number * reach + lookback() + in_block;
    for (std::size_t layer = 0; layer < layers_.size(); layer++) {
        Place place{};
        for (std::size_t i = 0; i < rows_.size(); i++) place[i] = block_row(rows_[i], layer, row);
        put(record, layer, part_.start + index, place);
        // The next block sees all positions of this block except the first.
        if (in_block == 0 || number + 1 == blocks_) continue;
        for (std::size_t i = 0; i < rows_.size(); i++)
            std::memcpy(block_row(rows_[i], layer, (number + 1) * reach + in_block - 1), place[i], rows_[i].bytes);
    }
}

void ExpertWindow::fill_mask() {
    // The mask is the same for all parts that begin at W or later, so it can be used again.
    const std::int64_t start = std::min(part_.start, window_);
    const std::array<std::int64_t, 3> wanted = {start, block_, blocks_};
    if (wanted == mask_for_) return;
    mask_for_ = wanted;
    const std::int64_t reach = block_ + lookback();
    const std::size_t numbers = checked_product({blocks_, block_, reach, experts_});
    prefill_mask_.resize(std::max(prefill_mask_.size(), dtype_bytes(dtype_, numbers)));
    fill_numbers(prefill_mask_.data(), dtype_, 0, numbers, hidden_);
    for (std::int64_t t = 0; t < blocks_ * block_; t++) {
        // Row r of a block belongs to position start + k*C + r - (W - 1).
        const std::int64_t in_block = t % block_;
        const std::int64_t first = std::max(in_block, lookback() - start - (t - in_block));
        const std::int64_t count = in_block + window_ - first;
        fill_numbers(prefill_mask_.data(), dtype_, static_cast<std::size_t>((t * reach + first) * experts_),
                     static_cast<std::size_t>(count * experts_), 0);
    }
}

std::vector<HostInput> ExpertWindow::inputs() {
    fill_mask();
    return named(prefill_mask_.data(), blocks_, block_, block_ + lookback(), false);
}

void ExpertWindow::finish(int sequence, std::int64_t end) {
    const std::int64_t count = std::min(end, window_);
    for (const Rows& rows : rows_)
        for (std::size_t layer = 0; layer < layers_.size(); layer++)
            for (std::int64_t i = 1; i <= count; i++)
                std::memcpy(slot(rows, layer, sequence, end - i), block_row(rows, layer, latest_ + window_ - i),
                            rows.bytes);
}

}  // namespace molkv
