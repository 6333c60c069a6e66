// Layer norms, and the mean and the inverse deviation of a token, of which they are made.
#pragma once

#include <cmath>

#include "tasks.h"

extern "C" {

struct LayerNorm { const void *weight, *bias; double eps; };

}  // extern "C"

template <class Real> struct Moments {
    Real mean, scale;
};

// x(full, channel, lanes) reads a register of the token.
template <class Real, class Token> Moments<Real> measure(const Token& x, int64_t channels, double eps) {
    Vec<Real> sum{}, squares{};
    for_registers<Real>(channels, [&](auto full, int64_t d, int lanes) { sum += x(full, d, lanes); });
    const Real mean = lane_sum(sum) / channels;
    for_registers<Real>(channels, [&](auto full, int64_t d, int lanes) {
        Vec<Real> deviation = x(full, d, lanes) - mean;
        if (!full)
            for (int lane = lanes; lane < Simd<Real>::width; ++lane) deviation[lane] = 0;
        squares += deviation * deviation;
    });
    return {mean, 1 / std::sqrt(lane_sum(squares) / channels + (Real)eps)};
}

// y = LN(x) + residual, of some rows of `dim` numbers; y may be x.
template <class T, class Weight>
void norm_rows(const typename T::Bits* x, const LayerNorm& layer, int64_t rows, int64_t dim, typename T::Bits* y,
               const typename T::Bits* residual = nullptr) {
    const auto *weight = (const typename Weight::Bits*)layer.weight, *bias = (const typename Weight::Bits*)layer.bias;
    for (const auto* end = x + rows * dim; x < end; x += dim, y += dim) {
        const auto token_at = [x](auto full, int64_t d, int lanes) { return read<T, full>(x + d, lanes); };
        const Moments<float> moments = measure<float>(token_at, dim, layer.eps);
        const float mean = moments.mean, scale = moments.scale;
        for_registers<float>(dim, [&](auto full, int64_t d, int lanes) {
            const Floats normal = (token_at(full, d, lanes) - mean) * scale;
            Floats value = normal * read<Weight, full>(weight + d, lanes) + read<Weight, full>(bias + d, lanes);
            if (residual) value += read<T, full>(residual + d, lanes);
            write<T, full>(y + d, value, lanes);
        });
        if (residual) residual += dim;
    }
}
