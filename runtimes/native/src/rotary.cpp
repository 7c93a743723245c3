// The cosines and sines of a rotation, and the rotation itself.
#include "rotary.h"

#include <cmath>

namespace molkv {

RotaryTable::RotaryTable(std::int64_t length, std::int64_t size, double theta)
    : cosines_(checked_product({length, size / 2})), sines_(cosines_.size()) {
    const std::int64_t half_size = size / 2;
    for (std::int64_t i = 0; i < half_size; i++)
        frequencies_.push_back(std::pow(theta, -static_cast<double>(i) / static_cast<double>(half_size)));
}

void RotaryTable::compute_to(std::size_t position) {
    for (; computed_ <= position; computed_++) {
        for (std::size_t i = 0; i < half(); i++) {
            const double angle = static_cast<double>(computed_) * frequencies_[i];
            cosines_[computed_ * half() + i] = static_cast<float>(std::cos(angle));
            sines_[computed_ * half() + i] = static_cast<float>(std::sin(angle));
        }
    }
}

std::span<const float> RotaryTable::cosines(std::int64_t position) {
    compute_to(static_cast<std::size_t>(position));
    return cosines_.span().subspan(static_cast<std::size_t>(position) * half(), half());
}

std::span<const float> RotaryTable::sines(std::int64_t position) {
    compute_to(static_cast<std::size_t>(position));
    return sines_.span().subspan(static_cast<std::size_t>(position) * half(), half());
}

void RotaryTable::rotate(std::span<float> rows, std::int64_t position) {
    const float* cosine = cosines(position).data();
    const float* sine = sines(position).data();
    for (std::size_t row = 0; row + 2 * half() <= rows.size(); row += 2 * half()) {
        float* first = rows.data() + row;
        float* second = first + half();
        for (std::size_t i = 0; i < half(); i++) {
            const float a = first[i];
            const float b = second[i];
            first[i] = a * cosine[i] - b * sine[i];
            second[i] = b * cosine[i] + a * sine[i];
        }
    }
}

}  // namespace molkv
