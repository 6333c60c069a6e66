// Depthwise convolutions of channels-last maps, forward and backward, with activation, bias and
// the input added. Plain C interface (at the end), called by fused.py.
//
//     p = b + sum_k W_k x_k  (+ x)        y = activation(p)
//
// p is not kept, but computed again in the backward pass. Channels lie in the lanes of a register, rows of the map in a
// ring of as many as the kernel is high, widened to the dtype of the sums and with zeros around.

#include "activations.h"
#include "depthwise.h"

namespace {
// Columns that are computed together: each weight that is loaded serves them all. Maps of images of 224 and 448 pixels
// are multiples of 7 wide; others waste a part of their last tile.
constexpr int TILE = 7;
// The most channels of a block, a constant so that addresses are, too: some rows of them stay in the cache of a core, and
// each read is long enough for its prefetcher.
constexpr int PITCH = 64;

// The last rows of a map, for a block of channels, PITCH numbers from column to column, with zeros on both sides, and room
// after them for the tiles that are not whole. The columns are sorted by what they leave when divided by a stride:
// those that neighbours in y read then lie side by side.
template <class Real> class Ring {
public:
    static int64_t size(int64_t slots, int64_t width, int64_t margin, int64_t stride) {
        return slots * pitch_of(width, margin, stride);
    }

    Ring(Real*& scratch, int64_t slots, int64_t width, int64_t margin, int64_t stride)
        : slots(slots), margin(margin), stride(stride), pitch(pitch_of(width, margin, stride)),
          each(pitch / stride), base(scratch) {
        scratch += slots * pitch;
    }

    void clear(int64_t row) { std::fill_n(at(row), pitch, Real(0)); }

    // Nothing is written there later. The contents of the room after them reach no result.
    void clear_margins(int64_t width) {
        for (int64_t slot = 0; slot < slots; ++slot)
            for (int64_t i = 1; i <= margin; ++i) {
                std::fill_n(at(slot) + offset(-i), PITCH, Real(0));
                std::fill_n(at(slot) + offset(width - 1 + i), PITCH, Real(0));
            }
    }

    Real* at(int64_t row) const { return base + (row + slots) % slots * pitch; }

    // Where a column begins, counted from at(row).
    int64_t offset(int64_t column) const {
        const int64_t inside = column + margin;
        return inside % stride * each + inside / stride * PITCH;
    }

private:
    const int64_t slots, margin, stride, pitch, each;
    Real* const base;

    static int64_t pitch_of(int64_t width, int64_t margin, int64_t stride) {
        return ((width + 2 * margin + stride - 1) / stride + TILE) * stride * PITCH;
    }
};

template <class T, int K> class Task {
    using Real = typename T::Real;
    using V = Vec<Real>;
    static constexpr int width = Simd<Real>::width, pad = K / 2, taps = K * K;
    static constexpr int rows_at_once = K == 3 ? 3 : 1;  // of the kernel, as many as keep the processor's pipes full

    // Backward, a row of x takes part in this many rows of y at most, and one is made while the last ones are read.
    static int64_t gradient_slots(const DepthwiseConv& conv) { return (K - 1) / conv.stride + 2; }

    const DepthwiseConv& conv;
    const Block<Real> block;
    Real *const weight, *const bias, *const sums;  // (K, K, PITCH), (PITCH), (K * K + 1, PITCH)
    Ring<Real> x, dp;                              // dp: with a margin of K
    int64_t reads[K];                              // where the columns lie that the first one of y is made of
    int64_t batch, loaded;                         // rows of x before it are in the ring

public:
    static int64_t scratch_size(const DepthwiseConv& conv) {
        return 2 * (taps + 1) * PITCH + Ring<Real>::size(K, conv.width, pad, conv.stride) +
               Ring<Real>::size(gradient_slots(conv), conv.out_width, K, 1);
    }

    Task(const DepthwiseConv& conv, int64_t block_index, Real* scratch)
        : conv(conv), block(conv.channels, conv.blocks, block_index), weight(take(scratch, taps * PITCH)),
          bias(take(scratch, PITCH)), sums(take(scratch, (taps + 1) * PITCH)),
          x(scratch, K, conv.width, pad, conv.stride), dp(scratch, gradient_slots(conv), conv.out_width, K, 1) {
        std::fill_n(weight, (taps + 1) * PITCH, Real(0));
        for (int64_t d = 0; d < block.channels(); ++d) {
            const Real* from = (const Real*)conv.weight + (block.begin + d) * taps;
            for (int k = 0; k < taps; ++k) weight[k * PITCH + d] = from[k];
            if (conv.bias) bias[d] = ((const Real*)conv.bias)[block.begin + d];
        }
        for (int kx = 0; kx < K; ++kx) reads[kx] = x.offset(kx - pad);
        x.clear_margins(conv.width);
    }

    void forward(int64_t batch_, int64_t begin, int64_t end) {
        enter(batch_, begin);
        for (int64_t row = begin; row < end; ++row) {
            const Real* rows[K];
            reach(row, rows);
            for_registers<Real>(block.channels(), [&](auto full, int64_t d, int lanes) {
                auto* to = place<T>(conv.y, batch, row, 0) + block.begin + d;
                for_tiles(conv.out_width, [&](int64_t column, int count) {
                    V p[TILE];
                    preactivate(rows, d, column, p);
                    for (int i = 0; i < count; ++i)
                        write<T, full>(to + (column + i) * conv.y.column, activate(conv.activation, p[i]), lanes);
                });
            });
        }
    }

    void backward(int64_t part) {
        std::fill_n(sums, (taps + 1) * PITCH, Real(0));
        dp.clear_margins(conv.out_width);
        const int64_t end = conv.batch * (part + 1) / conv.parts;
        for (int64_t image = conv.batch * part / conv.parts; image < end; ++image) {
            enter(image, 0);
            int64_t done = 0;  // rows of dx
            for (int64_t row = 0; row < conv.out_height; ++row) {
                const Real* rows[K];
                reach(row, rows);
                differentiate(row, rows);
                for (int ky = 0; ky < K; ky += rows_at_once) add_weight_sums(ky, row, rows);
                const bool last = row + 1 == conv.out_height;
                const int64_t whole = last ? conv.height : std::min(conv.stride * (row + 1) - pad, conv.height);
                for (; done < whole; ++done) write_dx(done);
            }
        }
        Real* to = (Real*)conv.weight_parts + part * (taps + 1) * conv.channels + block.begin;
        for (int k = 0; k <= taps; ++k) std::copy_n(sums + k * PITCH, block.channels(), to + k * conv.channels);
    }

private:
    // Call body(column, count) for tiles of columns, of which the last has fewer.
    template <class Body> static INLINE void for_tiles(int64_t columns, const Body& body) {
        int64_t column = 0;
        for (; column + TILE <= columns; column += TILE) body(column, TILE);
        if (column < columns) body(column, (int)(columns - column));
    }

    void enter(int64_t batch_, int64_t row) {
        batch = batch_, loaded = row * conv.stride - pad;
    }

    // Read the rows of x that a row of y is made of.
    void reach(int64_t row, const Real** rows) {
        const int64_t first = row * conv.stride - pad;
        for (loaded = std::max(loaded, first); loaded < first + K; ++loaded) {
            if (loaded < 0 || loaded >= conv.height) {
                x.clear(loaded);
                continue;
            }
            Real* to = x.at(loaded);
            const int64_t ahead = loaded + 1 < conv.height ? conv.x.row : 0;  // pieces of rows are no pattern to a processor
            for (int64_t column = 0; column < conv.width; ++column) {
                const auto* from = place<T>(conv.x, batch, loaded, column) + block.begin;
                for (int64_t d = 0; d < block.channels(); d += 64 / sizeof(*from)) __builtin_prefetch(from + ahead + d);
                Real* at = to + x.offset(column);
                for_registers<Real>(block.channels(), [&](auto full, int64_t d, int lanes) { store(at + d, read<T, full>(from + d, lanes)); });
            }
        }
        for (int ky = 0; ky < K; ++ky) rows[ky] = x.at(first + ky);
    }

    // p of a tile.
    INLINE void preactivate(const Real* const* rows, int64_t d, int64_t column, V* p) const {
        const int64_t from = column * PITCH + d;
        for (int i = 0; i < TILE; ++i) p[i] = load(bias + d);
        if (conv.residual)
            for (int i = 0; i < TILE; ++i) p[i] += load(rows[pad] + reads[pad] + from + i * PITCH);
        for (int ky = 0; ky < K; ++ky)
            for (int kx = 0; kx < K; ++kx) {
                const V w = load(weight + (ky * K + kx) * PITCH + d);
                const Real* at = rows[ky] + reads[kx] + from;
                for (int i = 0; i < TILE; ++i) p[i] += w * load(at + i * PITCH);
            }
    }

    // Make the gradient of p from that of y.
    void differentiate(int64_t row, const Real* const* rows) {
        Real* to = dp.at(row) + dp.offset(0);
        for_registers<Real>(block.channels(), [&](auto full, int64_t d, int lanes) {
            const auto* dy = place<T>(conv.y, batch, row, 0) + block.begin + d;
            const auto* dy_again = conv.dy_again.data ? place<T>(conv.dy_again, batch, row, 0) + block.begin + d : nullptr;
            V bias_sum = load(sums + taps * PITCH + d);
            for_tiles(conv.out_width, [&](int64_t column, int count) {
                V p[TILE];
                preactivate(rows, d, column, p);
                for (int i = 0; i < count; ++i) {
                    V gradient = read<T, full>(dy + (column + i) * conv.y.column, lanes);
                    if (dy_again)
                        gradient += read<T, full>(dy_again + (column + i) * conv.dy_again.column, lanes);
                    gradient *= slope(conv.activation, p[i]);
                    store(to + (column + i) * PITCH + d, gradient);
                    bias_sum += gradient;
                }
            });
            store(sums + taps * PITCH + d, bias_sum);
        });
    }

    // Add what a row of y contributes to the gradients of some rows of the kernel, from ky on.
    void add_weight_sums(int ky, int64_t row, const Real* const* rows) {
        const Real* gradients = dp.at(row) + dp.offset(0);
        for (int64_t d = 0; d < block.channels(); d += width) {
            V sum[rows_at_once * K] = {};
            for (int64_t column = 0; column < conv.out_width; ++column) {
                const V gradient = load(gradients + column * PITCH + d);
                for (int k = 0; k < rows_at_once * K; ++k)
                    sum[k] += gradient * load(rows[ky + k / K] + reads[k % K] + column * PITCH + d);
            }
            for (int k = 0; k < rows_at_once * K; ++k) {
                Real* to = sums + (ky * K + k) * PITCH + d;
                store(to, load(to) + sum[k]);
            }
        }
    }

    // A row of dx: each number gathers from the places of y that it takes part in.
    void write_dx(int64_t row) {
        const int64_t stride = conv.stride;
        const Real* rows[K];
        for (int ky = 0; ky < K; ++ky) {
            const int64_t at = row + pad - ky, from = at / stride;
            const bool reaches = at >= 0 && at % stride == 0 && from < conv.out_height;
            rows[ky] = reaches ? dp.at(from) + dp.offset(0) : nullptr;
        }
        for_registers<Real>(block.channels(), [&](auto full, int64_t d, int lanes) {
            auto* to = place<T>(conv.dx, batch, row, 0) + block.begin + d;
            const auto* dx_again = conv.dx_again.data ? place<T>(conv.dx_again, batch, row, 0) + block.begin + d : nullptr;
            // Columns of the same phase between those of y are reached by the same columns of the kernel.
            for (int64_t phase = 0; phase < stride; ++phase) {
                const int64_t first = ((phase - pad) % stride + stride) % stride, nearest = (first + pad) / stride;
                for_tiles((conv.width - first + stride - 1) / stride, [&](int64_t column, int count) {
                    V sum[TILE] = {};
                    if (conv.residual)  // of stride 1, so the rows are those of y
                        for (int i = 0; i < TILE; ++i) sum[i] = load(rows[pad] + (column + i) * PITCH + d);
                    for (int ky = 0; ky < K; ++ky) {
                        if (!rows[ky]) continue;
                        const Real* at = rows[ky] + (nearest + column) * PITCH + d;
                        for (int64_t kx = phase; kx < K; kx += stride, at -= PITCH) {
                            const V w = load(weight + (ky * K + kx) * PITCH + d);
                            for (int i = 0; i < TILE; ++i) sum[i] += w * load(at + i * PITCH);
                        }
                    }
                    for (int i = 0; i < count; ++i) {
                        const int64_t at = first + (column + i) * stride;
                        if (dx_again) sum[i] += read<T, full>(dx_again + at * conv.dx_again.column, lanes);
                        write<T, full>(to + at * conv.dx.column, sum[i], lanes);
                    }
                });
            }
        });
    }
};

template <class T, int K> void run_forward(DepthwiseConv conv) {
    using Real = typename T::Real;
    conv.blocks = ceil_div(conv.channels, PITCH);
    // Each number of y is computed alone, so this changes no bit of the results; each task rearranges its weights again.
    const int64_t parts = ceil_div(4 * conv.threads, std::max<int64_t>(conv.batch * conv.blocks, 1));
    conv.parts = std::max<int64_t>(std::min(parts, conv.out_height), 1);
    const auto task = [&](int64_t index, Real* scratch) {
        const int64_t block = index % conv.blocks, part = index / conv.blocks % conv.parts;
        Task<T, K>(conv, block, scratch)
            .forward(index / conv.blocks / conv.parts, conv.out_height * part / conv.parts,
                     conv.out_height * (part + 1) / conv.parts);
    };
    in_parallel(conv.threads, conv.batch * conv.parts * conv.blocks, (Real*)conv.scratch,
                Task<T, K>::scratch_size(conv), task);
}

template <class T, int K> void run_backward(const DepthwiseConv& conv) {
    using Real = typename T::Real;
    const auto task = [&](int64_t index, Real* scratch) {
        Task<T, K>(conv, index % conv.blocks, scratch).backward(index / conv.blocks);
    };
    in_parallel(conv.threads, conv.parts * conv.blocks, (Real*)conv.scratch, Task<T, K>::scratch_size(conv), task);
}

// Call body(T, K) for the dtype and the kernel.
template <class Body> auto with_types(const DepthwiseConv& conv, const Body& body) {
    const auto with_kernel = [&](auto T) {
        return conv.kernel == 3 ? body(T, std::integral_constant<int, 3>{}) : body(T, std::integral_constant<int, 7>{});
    };
    return with_dtype(conv.dtype, with_kernel);
}

}  // namespace

extern "C" {

// How many numbers of the dtype of the sums each thread needs as scratch.
EXPORT int64_t mmmsv_depthwise_conv_scratch(const DepthwiseConv* conv) {
    return with_types(*conv, [&](auto T, auto K) { return Task<decltype(T), K>::scratch_size(*conv); });
}

EXPORT void mmmsv_depthwise_conv_forward(const DepthwiseConv* conv) {
    with_types(*conv, [&](auto T, auto K) { run_forward<decltype(T), K>(*conv); });
}

EXPORT void mmmsv_depthwise_conv_backward(const DepthwiseConv* conv) {
    with_types(*conv, [&](auto T, auto K) { run_backward<decltype(T), K>(*conv); });
}

}  // extern "C"
