// The selective scan on CPUs: what its forward pass (scan_forward.cpp) and its backward pass (scan_backward.cpp) share.
// Plain C interface, called by scan.py.
//
// One recurrence for each image, sequence and channel; a sequence is a list of routes over a map, and a 1-D scan is one
// row. Channels lie in the lanes of a register. Work is cut by image and by block of channels, so that all cores are
// busy with a single image too; within such a task tokens are walked in order, CHUNK at a time.
//
//     step_t = softplus(W_dt dt_t + b_dt)    h_t = exp(step_t A) h_{t-1} + step_t B_t x_t    y_t = C_t h_t + Dskip x_t
//
// and, of a 1-D scan, y_t silu(z_t) in the place of y_t.
#pragma once

#include "activations.h"
#include "tasks.h"

constexpr int CHUNK = 64;  // tokens; the state before each chunk is kept for the backward pass (arguments.py)
constexpr int TILE = 8;    // tokens whose steps are made together: each weight that is loaded serves them all

extern "C" {

// Something that each token has; strides in elements. The last axis (D, R or N) is contiguous, unless `channel` is more
// than 1: then it is the stride of D, and scratch has room for some of it (see Rows).
struct PerToken {
    void* data;
    int64_t batch, sequence, route, row, column, channel;
};

struct Scan {
    int64_t dtype;  // of x, dt, B, C, dy: a place in DTYPES of library.py
    int64_t wide;   // y and dx are in the state's dtype instead
    int64_t batch, height, width, channels, states, rank, sequences, routes;  // channels, routes: of one sequence
    int64_t one_map;   // all sequences read the same map, so the gradients of its tokens are sums over them
    int64_t merge;     // their outputs are summed too
    int64_t shared;    // they share one parameter set
    int64_t softplus;  // whether the step goes through one
    int64_t blocks;    // number of blocks that the channels of a sequence are cut into
    int64_t threads;
    const int64_t* route_codes;  // (sequences, routes), places in ROUTES of routes.py
    PerToken x, dt, B, C, y;     // dt: of rank R; with rank 0 the step before bias and softplus of each channel
    // Weights of S sets in the state's dtype, channels padded to a multiple of 16 with zeros.
    int64_t padded;                          // channels with their padding
    const void *W_dt, *b_dt, *A, *Dskip;     // (S, R, padded), (S, padded), (S, N, padded), (S, padded)
    void* kept;                              // states before each chunk, (batch, chunks, N, sequences * D), or null
    PerToken z;                              // the gate, or nowhere; with rank 0 only, as are all that follow
    const void* entering;  // state before the first token, (batch, N, sequences * D), or null for 0
    void* leaving;         // state after the last token, likewise, or null; backward: the gradients of both, swapped
    // Backward only.
    PerToken dy, dx, ddelta, dz;
    int64_t padded_rank;                     // R rounded up to a multiple of 16
    const void* W_dt_rows;                   // (S, padded, padded_rank)
    int64_t groups;                          // of images; each sums its own gradients of the weights
    void* token_parts;   // (blocks, batch, H * W, S, R + 2 N): of the gradients of dt, B, C
    void* weight_parts;  // (groups, S, R + N + 2, padded), zeros: of those of W_dt, A, b_dt, Dskip
    void* scratch;       // for each thread, as many numbers of the state's dtype as mmmsv_scan_scratch says
};

// How many numbers of the state's dtype each thread needs as scratch.
EXPORT int64_t mmmsv_scan_scratch(const Scan* scan);

void mmmsv_scan_forward(const Scan* scan);

}  // extern "C"

// Each route begins with a chunk.
inline int64_t chunks_of_route(const Scan& scan) { return ceil_div(scan.height * scan.width, CHUNK); }
inline int64_t chunks_of(const Scan& scan) { return scan.routes * chunks_of_route(scan); }
inline int64_t shared_width(const Scan& scan) { return scan.rank + 2 * scan.states; }
inline int64_t sets_of(const Scan& scan) { return scan.shared ? 1 : scan.sequences; }
inline int64_t set_of(const Scan& scan, int64_t sequence) { return scan.shared ? 0 : sequence; }

// Where a block of channels of one of `states` states begins, (states, N, sequences * D): that of number n is n times
// sequences * D on.
template <class Real>
const Real* state_at(const Scan& scan, const void* states, int64_t index, int64_t sequence, int64_t channel) {
    return (const Real*)states + (index * scan.states * scan.sequences + sequence) * scan.channels + channel;
}
template <class Real>
Real* state_at(const Scan& scan, void* states, int64_t index, int64_t sequence, int64_t channel) {
    return (Real*)state_at<Real>(scan, (const void*)states, index, sequence, channel);
}

// Copy the numbers of a state, each a row of channels.
template <class Real>
void copy_state(const Scan& scan, int64_t channels, const Real* from, int64_t from_stride, Real* to, int64_t to_stride) {
    for (int64_t n = 0; n < scan.states; ++n) std::copy_n(from + n * from_stride, channels, to + n * to_stride);
}

// How many numbers a block of a forward pass keeps of all tokens, from the first route of a sequence for the others: none
// where there is but one, where each has a map of its own, or where they would not stay in the cache of a core. The same
// for all blocks: the scratch is that of the largest.
template <class Real> int64_t kept_by_routes(const Scan& scan) {
    constexpr int64_t MOST_BYTES = 640 << 10;
    const int64_t padded = Block<Real>::most_padded(scan.channels, scan.blocks);
    const int64_t numbers = scan.height * scan.width * padded * (1 + scan.states);
    return scan.routes > 1 && !scan.x.route && numbers * (int64_t)sizeof(Real) <= MOST_BYTES ? numbers : 0;
}

// The weights of the channels of one parameter set, from one channel on.
template <class Real> struct Weights {
    const Real *W_dt, *b_dt, *A, *Dskip;

    Weights(const Scan& scan, int64_t set, int64_t channel)
        : W_dt(scan.rank ? (const Real*)scan.W_dt + set * scan.rank * scan.padded + channel : nullptr),
          b_dt((const Real*)scan.b_dt + set * scan.padded + channel),
          A((const Real*)scan.A + set * scan.states * scan.padded + channel),
          Dskip((const Real*)scan.Dskip + set * scan.padded + channel) {}
};

// A walk over a map along a route, from one of its tokens on.
class Walk {
public:
    int64_t row, column;

    Walk(const Scan& scan, int64_t code, int64_t token) {
        column_major = code & 1;
        minors = column_major ? scan.height : scan.width;
        stride = code & 2 ? -1 : 1;
        const int64_t place = code & 2 ? scan.height * scan.width - 1 - token : token;
        row = column_major ? place % minors : place / minors;
        column = column_major ? place / minors : place % minors;
    }

    void next() {
        int64_t& minor = column_major ? row : column;
        int64_t& major = column_major ? column : row;
        minor += stride;
        if (minor == minors || minor < 0) {
            minor = stride > 0 ? 0 : minors - 1;
            major += stride;
        }
    }

private:
    int64_t minors, stride;
    bool column_major;
};

// The tokens of a chunk: where they lie, and what each has for all channels.
template <class T> struct Chunk {
    using Real = typename T::Real;
    int64_t batch, sequence;
    int count;
    int64_t route;  // counted over all sequences
    int64_t row[CHUNK], column[CHUNK];
    Real* shared;  // (R + 2 N, CHUNK): dt, B, C, in the state's dtype

    void fill(const Scan& scan, int64_t index) {
        route = sequence * scan.routes + index / chunks_of_route(scan);
        const int64_t begin = index % chunks_of_route(scan) * CHUNK;
        count = std::min<int64_t>(CHUNK, scan.height * scan.width - begin);
        Walk walk(scan, scan.route_codes[route], begin);
        for (int t = 0;; walk.next()) {
            row[t] = walk.row, column[t] = walk.column;
            gather(shared + t, scan.dt, t, scan.rank);
            gather(shared + t + scan.rank * CHUNK, scan.B, t, scan.states);
            gather(shared + t + (scan.rank + scan.states) * CHUNK, scan.C, t, scan.states);
            if (++t == count) break;
        }
    }

    int64_t place(const PerToken& tensor, int t) const {
        return batch * tensor.batch + sequence * tensor.sequence + route * tensor.route + row[t] * tensor.row +
               column[t] * tensor.column;
    }

private:
    void gather(Real* to, const PerToken& tensor, int t, int64_t size) const {
        const auto* from = (const typename T::Bits*)tensor.data + place(tensor, t);
        for (int64_t i = 0; i < size; ++i) to[i * CHUNK] = read_one<T>(from + i);
    }
};

// How many numbers a block holds of the tokens of a chunk for each tensor whose channels are not contiguous. Rows are a
// register longer than they need be: those of a power of two would share few places of a cache.
template <class Real> int64_t staged_row(int64_t padded) { return padded + Simd<Real>::width; }
template <class Real> int64_t staged_size(const Scan& scan) {
    int64_t tensors = 0;
    for (const PerToken* each : {&scan.x, &scan.dt, &scan.z, &scan.y, &scan.dy, &scan.dx, &scan.ddelta, &scan.dz})
        tensors += each->channel > 1;
    return tensors * CHUNK * staged_row<Real>(Block<Real>::most_padded(scan.channels, scan.blocks));
}

// Where the tokens of a chunk have the channels of a block. Those that are not contiguous in memory are copied, chunk by
// chunk, to scratch that stays in the cache of a core, and back.
template <class Stored> class Rows {
    using Bits = typename Stored::Bits;
    using Real = typename Stored::Real;

public:
    Bits* at[CHUNK + TILE];

    Rows(const PerToken& tensor, const Block<Real>& block, Real*& scratch)
        : tensor(tensor), block(block), stride(staged_row<Real>(block.padded())),
          staged(tensor.channel > 1 ? (Bits*)take(scratch, CHUNK * stride) : nullptr) {}

    // Find them; what is not contiguous is not yet copied.
    template <class T> void find(const Chunk<T>& chunk) {
        if (!tensor.data) return;
        for (int t = 0; t < chunk.count; ++t) at[t] = staged ? staged + t * stride : from(chunk, t) + block.begin;
    }

    // Find and copy them; `ahead` is where the tokens of the next chunk are, CHUNK or -CHUNK.
    template <class T> void read(const Chunk<T>& chunk, int ahead) {
        find(chunk);
        copy(chunk, ahead, [](Bits& in_memory, Bits& in_scratch) { in_scratch = in_memory; });
    }

    // Write back what was written to the rows that were found.
    template <class T> void write(const Chunk<T>& chunk, int ahead) const {
        copy(chunk, ahead, [](Bits& in_memory, Bits& in_scratch) { in_memory = in_scratch; });
    }

private:
    const PerToken& tensor;
    const Block<Real> block;
    const int64_t stride;
    Bits* const staged;

    template <class T> Bits* from(const Chunk<T>& chunk, int t) const {
        return (Bits*)tensor.data + chunk.place(tensor, t);
    }

    template <class T, class Copy> void copy(const Chunk<T>& chunk, int ahead, const Copy& one) const {
        if (!staged) return;
        constexpr int LINE = 64 / sizeof(Bits);
        Bits* tokens[CHUNK];
        for (int t = 0; t < chunk.count; ++t) tokens[t] = from(chunk, t) + block.begin * tensor.channel;
        for (int64_t d = 0; d < block.channels(); ++d) {
            // Each channel is on a page of its own: no prefetcher of the processor sees the next chunk coming.
            for (int i = 0; i < CHUNK; i += LINE) __builtin_prefetch(tokens[0] + d * tensor.channel + ahead + i, 1, 2);
            for (int t = 0; t < chunk.count; ++t) one(tokens[t][d * tensor.channel], staged[t * stride + d]);
        }
    }
};

// The steps of `count` tokens from t on, before the softplus.
template <class T, bool full, int count, class Real = typename T::Real>
INLINE void steps(const Scan& scan, const Real* shared, typename T::Bits* const* delta, int64_t offset, int lanes,
                  const Weights<Real>& weights, Vec<Real>* step) {
    for (int i = 0; i < count; ++i) step[i] = load(weights.b_dt);
    if (scan.rank == 0)
        for (int i = 0; i < count; ++i) step[i] += read<T, full>(delta[i] + offset, lanes);
    for (int64_t r = 0; r < scan.rank; ++r) {
        const Vec<Real> weight = load(weights.W_dt + r * scan.padded);
        for (int i = 0; i < count; ++i) step[i] += shared[r * CHUNK + i] * weight;
    }
    // Padding times infinity is NaN, which sums over channels would spread.
    if (!full)
        for (int i = 0; i < count; ++i)
            for (int lane = lanes; lane < Simd<Real>::width; ++lane) step[i][lane] = 0;
}

// Call body(T, Out): the dtypes of what is read, and of y or dx.
template <class Body> void with_dtypes(const Scan& scan, const Body& body) {
    with_dtype(scan.dtype, [&](auto T) {
        if constexpr (sizeof(typename decltype(T)::Bits) < sizeof(float))
            if (scan.wide) return body(T, f32{});
        return body(T, T);
    });
}
