// Vectors of one register, through the vector extensions of GCC and clang: one source for AVX-512, AVX2, SSE and NEON.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>
#if defined(__SSE__)
#include <xmmintrin.h>
#endif

#if defined(__AVX512F__)
#define REGISTER_BYTES 64
#elif defined(__AVX__)
#define REGISTER_BYTES 32
#else
#define REGISTER_BYTES 16
#endif

#define INLINE inline __attribute__((always_inline))

// How the tensors that hold something for each token are stored; bf16 and f16 are computed with in float.
struct f32 { using Real = float; using Bits = uint32_t; };
struct f64 { using Real = double; using Bits = uint64_t; };
struct bf16 { using Real = float; using Bits = uint16_t; };
struct f16 { using Real = float; using Bits = uint16_t; };

template <class Real> struct Simd;
template <> struct Simd<float> {
    static constexpr int width = REGISTER_BYTES / 4;
    typedef float Vec __attribute__((vector_size(REGISTER_BYTES)));
    typedef int32_t Int __attribute__((vector_size(REGISTER_BYTES)));
    typedef uint32_t Word __attribute__((vector_size(REGISTER_BYTES)));
    typedef uint16_t Half __attribute__((vector_size(REGISTER_BYTES / 2)));
};
template <> struct Simd<double> {
    static constexpr int width = REGISTER_BYTES / 8;
    typedef double Vec __attribute__((vector_size(REGISTER_BYTES)));
};

template <class Real> using Vec = typename Simd<Real>::Vec;
typedef Simd<float>::Vec Floats;
typedef Simd<float>::Int Ints;
typedef Simd<float>::Word Words;
typedef Simd<float>::Half Halves;
typedef Simd<double>::Vec Doubles;

INLINE Floats as_floats(Words bits) { return (Floats)bits; }
INLINE Words as_words(Floats value) { return (Words)value; }

template <class Real> INLINE Vec<Real> splat(Real value) { return Vec<Real>{} + value; }

template <class Real> INLINE Vec<Real> load(const Real* from) {
    Vec<Real> value;
    memcpy(&value, from, sizeof value);
    return value;
}

template <class Real> INLINE void store(Real* to, Vec<Real> value) { memcpy(to, &value, sizeof value); }

// Sum over the lanes, in an order that depends on the register's width alone.
INLINE float lane_sum(Floats value) {
    typedef float Quarter __attribute__((vector_size(16)));
    Quarter parts[REGISTER_BYTES / 16], sum{};
    memcpy(parts, &value, sizeof value);
    for (const Quarter part : parts) sum += part;
    return (sum[0] + sum[1]) + (sum[2] + sum[3]);
}

INLINE double lane_sum(Doubles value) {
    double sum = 0;
    for (int i = 0; i < Simd<double>::width; ++i) sum += value[i];
    return sum;
}

// --- 16-bit formats -------------------------------------------------------------------------------------------------

INLINE Floats widen(bf16, Halves raw) { return as_floats(__builtin_convertvector(raw, Words) << 16); }

INLINE Halves narrow(bf16, Floats value) {
    Words bits = as_words(value);
    Words rounded = (bits + 0x7fff + ((bits >> 16) & 1)) >> 16;  // to nearest, ties to even
    return __builtin_convertvector(value == value ? rounded : Words{} + 0x7fc0, Halves);
}

INLINE Floats widen(f16, Halves raw) {
    Words half = __builtin_convertvector(raw, Words), sign = (half & 0x8000) << 16, size = half & 0x7fff;
    Words normal = (size << 13) + (112u << 23), special = (size << 13) | 0x7f800000;
    Words tiny = as_words(__builtin_convertvector((Ints)size, Floats) * 0x1p-24f);
    Words bits = size >= 0x7c00 ? special : normal;
    return as_floats((size < 0x400 ? tiny : bits) | sign);
}

INLINE Halves narrow(f16, Floats value) {
    Words bits = as_words(value), sign = (bits >> 16) & 0x8000, size = bits & 0x7fffffff;
    Words normal = size - (112u << 23);
    normal = (normal + 0xfff + ((normal >> 13) & 1)) >> 13;
    // Adding 1.5 * 2^23 leaves the nearest whole number in the low bits.
    Words tiny = as_words(as_floats(size) * 0x1p24f + 12582912.0f) - 0x4b400000;
    Words special = size > 0x7f800000 ? Words{} + 0x7e00 : Words{} + 0x7c00;
    Words half = size >= 0x47800000 ? special : normal;
    return __builtin_convertvector((size < 0x38800000 ? tiny : half) | sign, Halves);
}

// Read or write one register's worth of channels; where full is not set, only the first lanes of them.
template <class T, bool full> INLINE Vec<typename T::Real> read(const typename T::Bits* from, int lanes) {
    constexpr size_t bytes = Simd<typename T::Real>::width * sizeof(typename T::Bits);
    const size_t count = full ? bytes : lanes * sizeof(typename T::Bits);
    if constexpr (sizeof(typename T::Bits) == 2) {
        Halves raw{};
        memcpy(&raw, from, count);
        return widen(T{}, raw);
    } else {
        Vec<typename T::Real> value{};
        memcpy(&value, from, count);
        return value;
    }
}

template <class T, bool full> INLINE void write(typename T::Bits* to, Vec<typename T::Real> value, int lanes) {
    constexpr size_t bytes = Simd<typename T::Real>::width * sizeof(typename T::Bits);
    const size_t count = full ? bytes : lanes * sizeof(typename T::Bits);
    if constexpr (sizeof(typename T::Bits) == 2) {
        Halves raw = narrow(T{}, value);
        memcpy(to, &raw, count);
    } else {
        memcpy(to, &value, count);
    }
}

// The same of numbers that are stored as they are computed with.
template <bool full, class Real> INLINE Vec<Real> read_real(const Real* from, int lanes) {
    Vec<Real> value{};
    memcpy(&value, from, full ? sizeof value : lanes * sizeof(Real));
    return value;
}

template <bool full, class Real> INLINE void write_real(Real* to, Vec<Real> value, int lanes) {
    memcpy(to, &value, full ? sizeof value : lanes * sizeof(Real));
}

template <class T> INLINE typename T::Real read_one(const typename T::Bits* from) {
    return read<T, false>(from, 1)[0];
}

// --- exp, softplus, sigmoid -----------------------------------------------------------------------------------------

constexpr double log2_e = 1.4426950408889634;

// 2^x; 0 below 2^-126.5, infinite from 2^127.5 on, NaN of NaN.
INLINE Floats exp2(Floats x) {
    // Written so that NaN passes.
    x = x < -127.0f ? splat(-127.0f) : x;
    x = x > 128.0f ? splat(128.0f) : x;
    const float shift = 12582912.0f;  // 1.5 * 2^23: adding it rounds to a whole number, found in the low bits
    Floats shifted = x + shift, f = x - (shifted - shift);
    // Largest relative error on [-1/2, 1/2]: 2e-9. At 0 it is exact, or long products of decays would drift.
    Floats p = splat(1.53458076e-4f);
    p = p * f + 1.33999312e-3f;
    p = p * f + 9.61848897e-3f;
    p = p * f + 5.55032878e-2f;
    p = p * f + 2.40226469e-1f;
    p = p * f + 6.93147206e-1f;
    p = p * f + 1.0f;
    return p * as_floats((as_words(shifted) - (0x4b400000 - 127)) << 23);
}

INLINE Doubles exp2(Doubles x) {
    for (int i = 0; i < Simd<double>::width; ++i) x[i] = std::exp2(x[i]);
    return x;
}

// log(1 + e) for e in [0, 1].
INLINE Floats log1p(Floats e) {
    Floats p = splat(5.23262408e-3f);  // largest relative error: 3e-8
    p = p * e - 2.95049575e-2f;
    p = p * e + 7.82254939e-2f;
    p = p * e - 1.36632069e-1f;
    p = p * e + 1.91059885e-1f;
    p = p * e - 2.48429775e-1f;
    p = p * e + 3.33190962e-1f;
    p = p * e - 4.99994931e-1f;
    p = p * e + 0.99999997f;
    return p * e;
}

INLINE Doubles log1p(Doubles e) {
    for (int i = 0; i < Simd<double>::width; ++i) e[i] = std::log1p(e[i]);
    return e;
}

// exp(-|x|), of which softplus and sigmoid are made without overflow.
template <class V> INLINE V exp_minus_size(V x) {
    V minus_size = x > 0 ? -x : x;
    return exp2(minus_size * (decltype(x[0] + 0))log2_e);
}

template <class V> INLINE V softplus(V x) { return (x < 0 ? V{} : x) + log1p(exp_minus_size(x)); }

template <class V> INLINE V sigmoid(V x) {
    V e = exp_minus_size(x), r = 1 / (1 + e);
    return x < 0 ? e * r : r;
}

// Flush denormal numbers to 0 for the life of this object: a state that dies away would otherwise slow a core down.
class FlushDenormals {
public:
#if defined(__SSE__)
    FlushDenormals() : before(_mm_getcsr()) { _mm_setcsr(before | 0x8040); }
    ~FlushDenormals() { _mm_setcsr(before); }

private:
    unsigned before;
#endif
};
