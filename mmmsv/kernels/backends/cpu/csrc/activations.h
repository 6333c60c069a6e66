// Activations and their slopes, at what goes into them.
#pragma once

#include "simd.h"

// exp(-x^2 / 2).
template <class V> INLINE V exp_minus_half_square(V x) { return exp2(x * x * (decltype(x[0] + 0))(-0.5 * log2_e)); }

// The part of the normal distribution beyond |x|, given exp(-x^2 / 2).
INLINE Floats normal_tail(Floats x, Floats density) {
    const Floats t = 1 / (1 + 0.33f * (x < 0 ? -x : x));
    Floats p = splat(0.04465131f);  // fitted to it over the density, for a largest error in gelu of 3e-9
    p = p * t - 0.21633854f;
    p = p * t + 0.32291186f;
    p = p * t - 0.08067658f;
    p = p * t + 0.17606022f;
    p = p * t + 0.12096348f;
    p = p * t + 0.13242825f;
    return p * t * density;
}

INLINE Doubles normal_tail(Doubles x, Doubles) {
    for (int i = 0; i < Simd<double>::width; ++i) x[i] = 0.5 * std::erfc(std::fabs(x[i]) * 0.7071067811865476);
    return x;
}

// The normal distribution up to x.
template <class V> INLINE V normal_below(V x, V density) {
    const V tail = normal_tail(x, density);
    return x < 0 ? tail : 1 - tail;
}

// A place in ACTIVATIONS of fused.py.
enum Activation : int64_t { NONE, SILU, GELU };

template <class V> INLINE V activate(int64_t kind, V x) {
    if (kind == SILU) return x * sigmoid(x);
    if (kind == GELU) return x * normal_below(x, exp_minus_half_square(x));
    return x;
}

template <class V> INLINE V slope(int64_t kind, V x) {
    typedef decltype(x[0] + 0) Real;
    if (kind == SILU) {
        const V s = sigmoid(x);
        return s * (1 + x * (1 - s));
    }
    if (kind == GELU) {
        const V density = exp_minus_half_square(x);
        return normal_below(x, density) + x * density * (Real)0.3989422804014327;
    }
    return V{} + 1;
}
