#include "scan.h"

namespace {

// What the backward pass of a task holds: rows of `width` lanes for the tokens of a chunk, one register at a time.
template <class Real> struct Workspace {
    static constexpr int width = Simd<Real>::width, row = CHUNK * width;
    Real *shared, *wanted, *dstep, *dB, *dC;
    Real *step, *slope, *x, *dy, *decay, *state, *gB, *dstep_rate, *y, *dz;

    // Of block.padded() = padded channels; returns how many numbers it takes, with base null to ask for that.
    static int64_t size(const Scan& scan, int64_t padded) {
        return CHUNK * shared_width(scan) + (scan.states + CHUNK) * padded + 2 * scan.states * row + 10 * row + width;
    }

    Workspace(const Scan& scan, int64_t padded, Real* base) {
        const auto take = [&base](int64_t count) { return (base += count) - count; };
        shared = take(CHUNK * shared_width(scan));
        wanted = take(scan.states * padded);
        dstep = take(CHUNK * padded);
        dB = take(scan.states * row), dC = take(scan.states * row);
        step = take(row), slope = take(row), x = take(row), dy = take(row), decay = take(row);
        state = take(row + width), gB = take(row), dstep_rate = take(row);
        y = take(row), dz = take(row);
    }
};

// Read `count` tokens from t on, and make their steps again.
template <class T, bool full, int count, class Real = typename T::Real>
void backward_read(const Scan& scan, const Real* shared, int t, typename T::Bits* const* x_at,
                   typename T::Bits* const* delta_at, typename T::Bits* const* dy_at, int64_t offset, int lanes,
                   const Weights<Real>& weights, const Workspace<Real> work) {
    constexpr int width = Simd<Real>::width;
    Vec<Real> step[count];
    steps<T, full, count>(scan, shared + t, delta_at + t, offset, lanes, weights, step);
    const bool through_softplus = scan.softplus;
    for (int i = 0; i < count; ++i) {
        const int64_t at = (t + i) * width;
        // The next register of channels comes soon; no prefetcher of the processor foresees it.
        __builtin_prefetch(x_at[t + i] + offset + width);
        __builtin_prefetch(dy_at[t + i] + offset + width);
        store(work.slope + at, through_softplus ? sigmoid(step[i]) : splat<Real>(1));
        store(work.step + at, through_softplus ? softplus(step[i]) : step[i]);
        store(work.x + at, read<T, full>(x_at[t + i] + offset, lanes));
        store(work.dy + at, read<T, full>(dy_at[t + i] + offset, lanes));
        store(work.gB + at, Vec<Real>{});
        store(work.dstep_rate + at, Vec<Real>{});
    }
}

// Take the gate out of dy: with out = y silu(z) it is dy = dout silu(z), and dz = dout y slope(z), whose y comes later.
template <class T, bool full, class Real = typename T::Real>
void backward_gate(int count, typename T::Bits* const* z_at, int64_t offset, int lanes, Vec<Real> skip,
                   const Workspace<Real> work) {
    for (int t = 0; t < count; ++t) {
        const int64_t at = t * Simd<Real>::width;
        const Vec<Real> z = read<T, full>(z_at[t] + offset, lanes), dout = load(work.dy + at);
        store(work.dy + at, dout * activate(SILU, z));
        store(work.dz + at, dout * slope(SILU, z));
        store(work.y + at, skip * load(work.x + at));
    }
}

// State number n of one register of channels: from `state` forwards again, then g = dL/dh backwards from `wanted`.
// Adds to dB, dC, gB = B g and dstep and, where there is a gate, to y; returns its part of dA.
template <bool gated, class Real>
INLINE Vec<Real> backward_state(const Scan& scan, int count, int64_t n, Vec<Real> state, Real* wanted, Vec<Real> A,
                                const Workspace<Real> work) {
    constexpr int width = Simd<Real>::width;
    const int64_t states = scan.states;
    const Real *B = work.shared + (scan.rank + n) * CHUNK, *C = B + scan.states * CHUNK;
    const Vec<Real> rate = A * (Real)log2_e;
    for (int t = 0; t < count; ++t) {
        const Vec<Real> step = load(work.step + t * width), decay = exp2(step * rate);
        store(work.decay + t * width, decay);
        store(work.state + t * width, state);
        state = decay * state + step * load(work.x + t * width) * B[t];
        if (gated) store(work.y + t * width, load(work.y + t * width) + C[t] * state);
    }
    store(work.state + count * width, state);
    Vec<Real> carried = load(wanted), dA{};  // carried: exp(step_{t+1} A) g_{t+1}
    for (int t = count - 1; t >= 0; --t) {
        const int64_t at = t * width, sum_at = (t * states + n) * width;
        const Vec<Real> step = load(work.step + at), decay = load(work.decay + at), dy = load(work.dy + at);
        const Vec<Real> g = carried + C[t] * dy;
        carried = decay * g;
        const Vec<Real> dexponent = carried * load(work.state + at);
        store(work.dC + sum_at, load(work.dC + sum_at) + load(work.state + at + width) * dy);
        store(work.dB + sum_at, load(work.dB + sum_at) + g * (step * load(work.x + at)));
        store(work.gB + at, load(work.gB + at) + B[t] * g);
        store(work.dstep_rate + at, load(work.dstep_rate + at) + dexponent * A);
        dA += dexponent * step;
    }
    store(wanted, carried);
    return dA;
}

// All numbers of the states of one register of channels, each from where the chunk begins; adds to dA.
template <bool gated, bool full, class Real>
void backward_states(const Scan& scan, int count, const Real* kept, Real* wanted, int64_t padded, int lanes,
                     const Weights<Real>& weights, Real* dA, const Workspace<Real> work) {
    for (int64_t n = 0; n < scan.states; ++n) {
        const Vec<Real> start = read_real<full>(kept + n * scan.sequences * scan.channels, lanes);
        const Vec<Real> sum = backward_state<gated>(scan, count, n, start, wanted + n * padded,
                                                    load(weights.A + n * scan.padded), work);
        store(dA + n * scan.padded, load(dA + n * scan.padded) + sum);
    }
}

// Add sum_t dstep_t dt_t[r] of `count` ranks from r on to the gradient of W_dt, (R, padded).
template <int count, class Real>
INLINE void add_dW_dt(const Scan& scan, int tokens, int64_t r, const Real* dstep, int64_t stride, const Real* shared,
                      Real* dW_dt) {
    Vec<Real> sum[count];
    for (int i = 0; i < count; ++i) sum[i] = load(dW_dt + (r + i) * scan.padded);
    for (int t = 0; t < tokens; ++t) {
        const Vec<Real> own = load(dstep + t * stride);
        for (int i = 0; i < count; ++i) sum[i] += shared[(r + i) * CHUNK + t] * own;
    }
    for (int i = 0; i < count; ++i) store(dW_dt + (r + i) * scan.padded, sum[i]);
}

// Add the gradients dt = W_dt^T dstep of `count` tokens from t on, summed over the channels of the block.
template <int count, class Real>
INLINE void add_ddt(const Scan& scan, const Real* W_dt_rows, const Real* dstep, int64_t channels, int64_t stride,
                    Real* const* parts) {
    constexpr int width = Simd<Real>::width;
    for (int64_t r = 0; r < scan.rank; r += width) {
        Vec<Real> sum[count] = {};
        for (int64_t d = 0; d < channels; ++d) {
            const Vec<Real> weight = load(W_dt_rows + d * scan.padded_rank + r);
            for (int i = 0; i < count; ++i) sum[i] += dstep[i * stride + d] * weight;
        }
        const int lanes = std::min<int64_t>(width, scan.rank - r);
        for (int i = 0; i < count; ++i)
            for (int lane = 0; lane < lanes; ++lane) parts[i][r + lane] += sum[i][lane];
    }
}

template <class T, class Out> struct BackwardRows {
    using Real = typename T::Real;
    Rows<T> x, delta, z, dy, ddelta, dz;
    Rows<Out> dx;

    BackwardRows(const Scan& scan, const Block<Real>& block, Real*& scratch)
        : x(scan.x, block, scratch), delta(scan.dt, block, scratch), z(scan.z, block, scratch),
          dy(scan.dy, block, scratch), ddelta(scan.ddelta, block, scratch), dz(scan.dz, block, scratch),
          dx(scan.dx, block, scratch) {}

    void read(const Chunk<T>& chunk) {
        x.read(chunk, -CHUNK), delta.read(chunk, -CHUNK), z.read(chunk, -CHUNK), dy.read(chunk, -CHUNK);
        ddelta.find(chunk), dz.find(chunk), dx.find(chunk);
    }

    void write(const Chunk<T>& chunk) const {
        ddelta.write(chunk, -CHUNK), dz.write(chunk, -CHUNK), dx.write(chunk, -CHUNK);
    }
};

// One register of channels, d of the block on, over a chunk: all gradients but those summed over channels, which it adds
// to work.dB and work.dC or leaves to be made of work.dstep.
template <class T, class Out, bool full, class Real = typename T::Real>
void backward_register(const Scan& scan, const Block<Real>& block, const Chunk<T>& chunk,
                       const BackwardRows<T, Out>& rows, int64_t d, const Real* kept, const Workspace<Real> work,
                       Real* weight_parts) {
    constexpr int width = Simd<Real>::width;
    const int64_t padded = block.padded(), set = set_of(scan, chunk.sequence), rank = scan.rank, states = scan.states;
    const int count = chunk.count, lanes = block.lanes(block.begin + d);
    const Weights<Real> weights(scan, set, block.begin + d);
    int t = 0;
    for (; t + TILE <= count; t += TILE)
        backward_read<T, full, TILE>(scan, work.shared, t, rows.x.at, rows.delta.at, rows.dy.at, d, lanes, weights, work);
    for (; t < count; ++t)
        backward_read<T, full, 1>(scan, work.shared, t, rows.x.at, rows.delta.at, rows.dy.at, d, lanes, weights, work);

    const Vec<Real> skip = load(weights.Dskip);
    const bool gated = scan.z.data;
    if (gated) backward_gate<T, full>(count, rows.z.at, d, lanes, skip, work);

    Real* dW_dt = weight_parts + set * (rank + states + 2) * scan.padded + block.begin + d;
    Real *dA = dW_dt + rank * scan.padded, *db_dt = dA + states * scan.padded, *dDskip = db_dt + scan.padded;
    const auto back = gated ? backward_states<true, full, Real> : backward_states<false, full, Real>;
    back(scan, count, kept + d, work.wanted + d, padded, lanes, weights, dA, work);

    // The walk goes backwards: at each place of the map the last route comes first, and others add to what it left.
    const int64_t last_route = scan.one_map ? scan.sequences * scan.routes - 1 : -1;
    Vec<Real> bias_sum = load(db_dt), skip_sum = load(dDskip);
    for (t = count - 1; t >= 0; --t) {
        const int64_t at = t * width;
        const Vec<Real> x = load(work.x + at), dy = load(work.dy + at), gB = load(work.gB + at);
        const Vec<Real> dstep = (load(work.dstep_rate + at) + gB * x) * load(work.slope + at);
        Vec<Real> dx = gB * load(work.step + at) + skip * dy;
        if (last_route >= 0 && chunk.route != last_route) dx += read<Out, full>(rows.dx.at[t] + d, lanes);
        write<Out, full>(rows.dx.at[t] + d, dx, lanes);
        if (rank == 0) write<T, full>(rows.ddelta.at[t] + d, dstep, lanes);
        if (gated) write<T, full>(rows.dz.at[t] + d, load(work.dz + at) * load(work.y + at), lanes);
        store(work.dstep + t * padded + d, dstep);
        bias_sum += dstep;
        skip_sum += dy * x;
    }
    store(db_dt, bias_sum);
    store(dDskip, skip_sum);
    int64_t r = 0;
    for (; r + 4 <= rank; r += 4) add_dW_dt<4>(scan, count, r, work.dstep + d, padded, work.shared, dW_dt);
    for (; r < rank; ++r) add_dW_dt<1>(scan, count, r, work.dstep + d, padded, work.shared, dW_dt);
}

template <class T, class Out, class Real = typename T::Real>
void backward_chunk(const Scan& scan, const Block<Real>& block, const Chunk<T>& chunk, BackwardRows<T, Out>& rows,
                    const Real* kept, const Workspace<Real>& work, Real* weight_parts) {
    constexpr int width = Simd<Real>::width;
    const int64_t padded = block.padded(), set = set_of(scan, chunk.sequence);
    rows.read(chunk);
    for (int t = 0; t < chunk.count; ++t) {
        __builtin_prefetch(rows.x.at[t]);
        __builtin_prefetch(rows.dy.at[t]);
    }
    std::fill_n(work.dB, 2 * scan.states * work.row, Real(0));  // dC follows it
    for (int64_t d = 0; d < block.channels(); d += width) {
        const auto one = block.lanes(block.begin + d) == width ? backward_register<T, Out, true>
                                                               : backward_register<T, Out, false>;
        one(scan, block, chunk, rows, d, kept, work, weight_parts);
    }
    rows.write(chunk);

    // A token's dt, B and C serve all routes where these share their parameters: first the last route, as above.
    const int64_t wide = shared_width(scan), sets = sets_of(scan), size = scan.height * scan.width;
    const int64_t last_route = scan.sequences * scan.routes - 1;
    Real* parts[CHUNK];
    for (int t = chunk.count - 1; t >= 0; --t) {
        const int64_t token = chunk.row[t] * scan.width + chunk.column[t];
        parts[t] = (Real*)scan.token_parts +
                   (((block.index * scan.batch + chunk.batch) * size + token) * sets + set) * wide;
        if (!scan.shared || chunk.route == last_route) std::fill_n(parts[t], wide, Real(0));
        for (int64_t n = 0; n < scan.states; ++n) {
            parts[t][scan.rank + n] += lane_sum(load(work.dB + (t * scan.states + n) * width));
            parts[t][scan.rank + scan.states + n] += lane_sum(load(work.dC + (t * scan.states + n) * width));
        }
    }
    const Real* W_dt_rows = (const Real*)scan.W_dt_rows + (set * scan.padded + block.begin) * scan.padded_rank;
    int t = 0;
    for (; t + TILE <= chunk.count; t += TILE)
        add_ddt<TILE>(scan, W_dt_rows, work.dstep + t * padded, block.channels(), padded, parts + t);
    for (; t < chunk.count; ++t) add_ddt<1>(scan, W_dt_rows, work.dstep + t * padded, block.channels(), padded, parts + t);
}

template <class T, class Out, class Real = typename T::Real>
void backward_task(const Scan& scan, int64_t group, const Block<Real>& block, Real* scratch) {
    const int64_t chunks = chunks_of(scan), padded = block.padded(), row = scan.sequences * scan.channels;
    BackwardRows<T, Out> rows(scan, block, scratch);
    const Workspace<Real> work(scan, padded, scratch);
    Chunk<T> chunk;
    chunk.shared = work.shared;
    Real* weight_parts =
        (Real*)scan.weight_parts + group * sets_of(scan) * (scan.rank + scan.states + 2) * scan.padded;
    const int64_t end = scan.batch * (group + 1) / scan.groups;
    for (chunk.batch = scan.batch * group / scan.groups; chunk.batch < end; ++chunk.batch) {
        for (chunk.sequence = scan.sequences - 1; chunk.sequence >= 0; --chunk.sequence) {
            const int64_t batch = chunk.batch, sequence = chunk.sequence;
            std::fill_n(work.wanted, scan.states * padded, Real(0));
            if (scan.entering)
                copy_state(scan, block.channels(), state_at<Real>(scan, scan.entering, batch, sequence, block.begin), row,
                           work.wanted, padded);
            for (int64_t c = chunks - 1; c >= 0; --c) {
                chunk.fill(scan, c);
                const Real* kept = state_at<Real>(scan, (const void*)scan.kept, batch * chunks + c, sequence, block.begin);
                backward_chunk<T, Out>(scan, block, chunk, rows, kept, work, weight_parts);
            }
            if (scan.leaving)
                copy_state(scan, block.channels(), work.wanted, padded,
                           state_at<Real>(scan, scan.leaving, batch, sequence, block.begin), row);
        }
    }
}

template <class Real> int64_t scratch_size(const Scan& scan) {
    const int64_t padded = Block<Real>::most_padded(scan.channels, scan.blocks);
    return Workspace<Real>::size(scan, padded) + kept_by_routes<Real>(scan) + staged_size<Real>(scan);
}

}  // namespace

extern "C" {

EXPORT int64_t mmmsv_scan_scratch(const Scan* scan) {
    return scan->dtype == 1 ? scratch_size<double>(*scan) : scratch_size<float>(*scan);
}

EXPORT void mmmsv_scan_backward(const Scan* scan) {
    with_dtypes(*scan, [&](auto T, auto Out) {
        using Real = typename decltype(T)::Real;
        const auto task = [&](int64_t index, Real* scratch) {
            const Block<Real> block(scan->channels, scan->blocks, index % scan->blocks);
            backward_task<decltype(T), decltype(Out)>(*scan, index / scan->blocks, block, scratch);
        };
        in_parallel(scan->threads, scan->groups * scan->blocks, (Real*)scan->scratch, mmmsv_scan_scratch(scan), task);
    });
}

}  // extern "C"
