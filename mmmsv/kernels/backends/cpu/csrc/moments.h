// The mean and the inverse deviation of a token, of which a layer norm is made.
#pragma once

#include <cmath>

#include "tasks.h"

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
