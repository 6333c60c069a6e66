// The gate of a map, forward and backward. Plain C interface (at the end), called by fused.py.
//
//     out = y * weight * silu(z)
//
// with a weight for each image and channel. Tasks are rows of the map; weight, z or both may be absent.

#include "activations.h"
#include "gate.h"

namespace {

template <class T, bool forward> void run(const Gate& gate) {
    using Real = typename T::Real;
    using V = Vec<Real>;
    const auto task = [&](int64_t index, Real*) {
        const int64_t batch = index / gate.parts, part = index % gate.parts, D = gate.channels;
        const Real* weight = gate.weight ? (const Real*)gate.weight + batch * D : nullptr;
        Real* sums = forward || !weight ? nullptr : (Real*)gate.weight_parts + index * D;
        if (sums) std::fill_n(sums, D, Real(0));
        const int64_t end = gate.height * (part + 1) / gate.parts;
        for (int64_t row = gate.height * part / gate.parts; row < end; ++row)
            for (int64_t column = 0; column < gate.width; ++column) {
                const auto *y_at = place<T>(gate.y, batch, row, column), *z_at = place<T>(gate.z, batch, row, column);
                auto* out_at = place<T>(gate.out, batch, row, column);
                for_registers<Real>(D, [&](auto full, int64_t d, int lanes) {
                    const V y = read<T, full>(y_at + d, lanes), one = splat<Real>(1);
                    const V w = weight ? read_real<full>(weight + d, lanes) : one;
                    const V z = gate.z.data ? read<T, full>(z_at + d, lanes) : one;
                    const V s = gate.z.data ? activate(SILU, z) : one;
                    if constexpr (forward) {
                        write<T, full>(out_at + d, y * w * s, lanes);
                    } else {
                        const V gradient = read<T, full>(out_at + d, lanes);
                        write<T, full>(place<T>(gate.dy, batch, row, column) + d, gradient * w * s, lanes);
                        if (gate.z.data)
                            write<T, full>(place<T>(gate.dz, batch, row, column) + d, gradient * y * w * slope(SILU, z),
                                           lanes);
                        if (sums) write_real<full>(sums + d, read_real<full>(sums + d, lanes) + gradient * y * s, lanes);
                    }
                });
            }
    };
    in_parallel(gate.threads, gate.batch * gate.parts, (Real*)gate.scratch, 0, task);
}

}  // namespace

extern "C" {

// Each thread needs no scratch.
EXPORT int64_t mmmsv_gate_scratch(const Gate*) { return 0; }

EXPORT void mmmsv_gate_forward(const Gate* gate) {
    with_dtype(gate->dtype, [&](auto T) { run<decltype(T), true>(*gate); });
}

EXPORT void mmmsv_gate_backward(const Gate* gate) {
    with_dtype(gate->dtype, [&](auto T) { run<decltype(T), false>(*gate); });
}

}  // extern "C"
