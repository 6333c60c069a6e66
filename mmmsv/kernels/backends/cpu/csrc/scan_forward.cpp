#include "scan.h"

namespace {

// Where a block keeps what it has made of each token, of which several routes make the same: (tokens, 1 + N, padded).
template <class Real> struct Kept {
    Real* at[CHUNK];  // of a token of the chunk, or null
    int64_t stride;
    bool made;        // by a route before
};

// One register of channels, `count` tokens from t on.
template <class T, class Out, bool full, int count, class Real = typename T::Real>
void forward_tile(const Scan& scan, const Chunk<T>& chunk, int t, typename T::Bits* const* x_at,
                  typename T::Bits* const* delta_at, typename T::Bits* const* z_at, typename Out::Bits* const* y_at,
                  int64_t offset, int lanes,
                  const Weights<Real>& weights, Real* state, int64_t state_stride, bool fetch, const Kept<Real>& kept) {
    const Real* shared = chunk.shared + t;
    Vec<Real> step[count] = {}, drive[count], y[count];
    if (!kept.made) steps<T, full, count>(scan, shared, delta_at + t, offset, lanes, weights, step);
    for (int i = 0; i < count; ++i) {
        if (!kept.made && scan.softplus) step[i] = softplus(step[i]);
        if (fetch) __builtin_prefetch(x_at[t + count + i] + offset);
        const Vec<Real> x = read<T, full>(x_at[t + i] + offset, lanes);
        drive[i] = kept.made ? load(kept.at[t + i] + offset) : step[i] * x;
        if (kept.at[t] && !kept.made) store(kept.at[t + i] + offset, drive[i]);
        y[i] = load(weights.Dskip) * x;
    }
    const Real *B = shared + scan.rank * CHUNK, *C = B + scan.states * CHUNK;
    for (int64_t n = 0; n < scan.states; ++n) {
        Vec<Real> decay[count], h = load(state + n * state_stride);
        const int64_t at = (1 + n) * kept.stride + offset;
        if (kept.made) {
            for (int i = 0; i < count; ++i) decay[i] = load(kept.at[t + i] + at);
        } else {
            const Vec<Real> rate = load(weights.A + n * scan.padded) * (Real)log2_e;
            for (int i = 0; i < count; ++i) decay[i] = exp2(step[i] * rate);
            if (kept.at[t])
                for (int i = 0; i < count; ++i) store(kept.at[t + i] + at, decay[i]);
        }
        for (int i = 0; i < count; ++i) {
            h = decay[i] * h + drive[i] * B[n * CHUNK + i];
            y[i] += C[n * CHUNK + i] * h;
        }
        store(state + n * state_stride, h);
    }
    if (scan.z.data)
        for (int i = 0; i < count; ++i) y[i] *= activate(SILU, read<T, full>(z_at[t + i] + offset, lanes));
    for (int i = 0; i < count; ++i) {
        auto* to = y_at[t + i] + offset;
        if (scan.merge && chunk.route) y[i] += read<Out, full>(to, lanes);
        write<Out, full>(to, y[i], lanes);
    }
}

template <class T, class Out, class Real = typename T::Real>
void forward_task(const Scan& scan, int64_t batch, const Block<Real>& block, Real* scratch) {
    const int64_t chunks = chunks_of(scan), padded = block.padded(), row = scan.sequences * scan.channels;
    Rows<T> x(scan.x, block, scratch), delta(scan.dt, block, scratch), z(scan.z, block, scratch);
    Rows<Out> y(scan.y, block, scratch);
    Chunk<T> chunk;
    chunk.batch = batch, chunk.shared = scratch;
    Real *state = scratch + CHUNK * shared_width(scan), *tokens = state + scan.states * padded;
    Kept<Real> kept{{}, padded, false};
    const bool keeps = kept_by_routes<Real>(scan) > 0;
    // From main memory the next tile is fetched ahead: blocks of rows are no pattern that a processor foresees. From its
    // caches that costs more than it brings.
    const bool fetch = scan.height * scan.width * scan.channels * sizeof(typename T::Bits) > (16 << 20);
    for (chunk.sequence = 0; chunk.sequence < scan.sequences; ++chunk.sequence) {
        const int64_t sequence = chunk.sequence;
        std::fill_n(state, scan.states * padded, Real(0));
        if (scan.entering)
            copy_state(scan, block.channels(), state_at<Real>(scan, scan.entering, batch, sequence, block.begin), row, state,
                       padded);
        for (int64_t c = 0; c < chunks; ++c) {
            chunk.fill(scan, c);
            x.read(chunk, CHUNK), delta.read(chunk, CHUNK), z.read(chunk, CHUNK), y.find(chunk);
            std::fill_n(x.at + chunk.count, TILE, x.at[chunk.count - 1]);
            kept.made = keeps && c >= chunks_of_route(scan);
            for (int t = 0; keeps && t < chunk.count; ++t)
                kept.at[t] = tokens + (chunk.row[t] * scan.width + chunk.column[t]) * (1 + scan.states) * padded;
            if (scan.kept)
                copy_state(scan, block.channels(), state, padded,
                           state_at<Real>(scan, scan.kept, batch * chunks + c, sequence, block.begin), row);
            for (int t = 0; t < chunk.count;) {
                const bool whole = t + TILE <= chunk.count;
                for (int64_t d = 0; d < block.channels(); d += block.width) {
                    const Weights<Real> weights(scan, set_of(scan, chunk.sequence), block.begin + d);
                    const int lanes = block.lanes(block.begin + d);
                    const bool full = lanes == block.width;
                    const auto tile = whole ? (full ? forward_tile<T, Out, true, TILE> : forward_tile<T, Out, false, TILE>)
                                            : (full ? forward_tile<T, Out, true, 1> : forward_tile<T, Out, false, 1>);
                    tile(scan, chunk, t, x.at, delta.at, z.at, y.at, d, lanes, weights, state + d, padded, fetch, kept);
                }
                t += whole ? TILE : 1;
            }
            y.write(chunk, CHUNK);
        }
        if (scan.leaving)
            copy_state(scan, block.channels(), state, padded,
                       state_at<Real>(scan, scan.leaving, batch, sequence, block.begin), row);
    }
}

}  // namespace

extern "C" EXPORT void mmmsv_scan_forward(const Scan* scan) {
    with_dtypes(*scan, [&](auto T, auto Out) {
        using Real = typename decltype(T)::Real;
        const auto task = [&](int64_t index, Real* scratch) {
            const Block<Real> block(scan->channels, scan->blocks, index % scan->blocks);
            forward_task<decltype(T), decltype(Out)>(*scan, index / scan->blocks, block, scratch);
        };
        in_parallel(scan->threads, scan->batch * scan->blocks, (Real*)scan->scratch, mmmsv_scan_scratch(scan), task);
    });
}
