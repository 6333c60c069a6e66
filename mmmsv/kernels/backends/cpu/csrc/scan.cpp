// The selective scan on CPUs, forward and backward. Plain C interface (at the end), called by native_scan.py.
//
// One recurrence for each image, sequence and channel; a sequence is a list of routes over a map, and a 1-D scan is one
// row. Channels lie in the lanes of a register. Work is cut by image and by block of channels, so that all cores are
// busy with a single image too; within such a task tokens are walked in order, CHUNK at a time.
//
//     step_t = softplus(W_dt dt_t + b_dt)    h_t = exp(step_t A) h_{t-1} + step_t B_t x_t    y_t = C_t h_t + Dskip x_t

#include "tasks.h"

namespace {
constexpr int CHUNK = 64;  // the state before each 64th token is kept for the backward pass (arguments.py)
constexpr int TILE = 8;    // tokens whose steps are made together: each weight that is loaded serves them all
}  // namespace

extern "C" {

// Something that each token has; strides in elements. The last axis (D, R or N) is contiguous.
struct PerToken {
    void* data;
    int64_t batch, sequence, route, row, column;
};

struct Scan {
    int64_t dtype;  // of x, dt, B, C, dy: a place in DTYPES of native_library.py
    int64_t wide;   // y and dx are in the state's dtype instead
    int64_t batch, height, width, channels, states, rank, sequences, routes;  // channels, routes: of one sequence
    int64_t one_map;   // all sequences read the same map, so the gradients of its tokens are sums over them
    int64_t merge;     // their outputs are summed too
    int64_t shared;    // they share one parameter set
    int64_t softplus;  // whether the step goes through one
    int64_t blocks;    // the channels of a sequence are cut into so many
    int64_t threads;
    const int64_t* route_codes;  // (sequences, routes), places in ROUTES of routes.py
    PerToken x, dt, B, C, y;     // dt: of rank R; with rank 0 the step before bias and softplus of each channel
    // Weights of S sets in the state's dtype, channels padded to a multiple of 16 with zeros.
    int64_t padded;                          // channels with their padding
    const void *W_dt, *b_dt, *A, *Dskip;     // (S, R, padded), (S, padded), (S, N, padded), (S, padded)
    void* kept;                              // states before each chunk, (batch, chunks, N, sequences * D)
    // Backward only.
    PerToken dy, dx, ddelta;                 // ddelta: with rank 0 only
    int64_t padded_rank;                     // R rounded up to a multiple of 16
    const void* W_dt_rows;                   // (S, padded, padded_rank)
    int64_t groups;                          // of images; each sums its own gradients of the weights
    void* token_parts;   // (blocks, batch, H * W, S, R + 2 N): of the gradients of dt, B, C
    void* weight_parts;  // (groups, S, R + N + 2, padded), zeros: of those of W_dt, A, b_dt, Dskip
    void* scratch;       // for each thread, as many numbers of the state's dtype as mmmsv_scan_scratch says
};

}  // extern "C"

namespace {

// --- what a task works on -------------------------------------------------------------------------------------------

int64_t tokens_of(const Scan& scan) { return scan.height * scan.width * scan.routes; }
int64_t chunks_of(const Scan& scan) { return (tokens_of(scan) + CHUNK - 1) / CHUNK; }
int64_t shared_width(const Scan& scan) { return scan.rank + 2 * scan.states; }
int64_t sets_of(const Scan& scan) { return scan.shared ? 1 : scan.sequences; }
int64_t set_of(const Scan& scan, int64_t sequence) { return scan.shared ? 0 : sequence; }

// The weights of the channels of one parameter set, from one channel on.
template <class Real> struct Weights {
    const Real *W_dt, *b_dt, *A, *Dskip;

    Weights(const Scan& scan, int64_t set, int64_t channel)
        : W_dt(scan.rank ? (const Real*)scan.W_dt + set * scan.rank * scan.padded + channel : nullptr),
          b_dt((const Real*)scan.b_dt + set * scan.padded + channel),
          A((const Real*)scan.A + set * scan.states * scan.padded + channel),
          Dskip((const Real*)scan.Dskip + set * scan.padded + channel) {}
};

// A walk over a map along the routes of one sequence.
class Walk {
public:
    int64_t route, row, column;

    Walk(const Scan& scan, int64_t sequence, int64_t token)
        : height(scan.height), width(scan.width), codes(scan.route_codes + sequence * scan.routes) {
        route = token / (height * width);
        enter(token % (height * width));
    }

    void next() {
        if (--left == 0) {
            ++route;
            return enter(0);
        }
        int64_t& minor = column_major ? row : column;
        int64_t& major = column_major ? column : row;
        minor += stride;
        if (minor == minors || minor < 0) {
            minor = stride > 0 ? 0 : minors - 1;
            major += stride;
        }
    }

private:
    const int64_t height, width;
    const int64_t* codes;
    int64_t left, minors, stride;
    bool column_major;

    void enter(int64_t token) {
        left = height * width - token;
        const int64_t code = codes[route];
        column_major = code & 1;
        minors = column_major ? height : width;
        stride = code & 2 ? -1 : 1;
        const int64_t place = code & 2 ? left - 1 : token;
        row = column_major ? place % height : place / width;
        column = column_major ? place / height : place % width;
    }
};

// The tokens of a chunk: where they lie, and what each has for all channels.
template <class T> struct Chunk {
    using Real = typename T::Real;
    int64_t batch, sequence;
    int count;
    int64_t route[CHUNK], row[CHUNK], column[CHUNK];  // route: counted over all sequences
    Real* shared;                                     // (R + 2 N, CHUNK): dt, B, C, in the state's dtype

    void fill(const Scan& scan, int64_t index) {
        count = std::min<int64_t>(CHUNK, tokens_of(scan) - index * CHUNK);
        Walk walk(scan, sequence, index * CHUNK);
        for (int t = 0;; walk.next()) {
            route[t] = sequence * scan.routes + walk.route, row[t] = walk.row, column[t] = walk.column;
            gather(shared + t, scan.dt, t, scan.rank);
            gather(shared + t + scan.rank * CHUNK, scan.B, t, scan.states);
            gather(shared + t + (scan.rank + scan.states) * CHUNK, scan.C, t, scan.states);
            if (++t == count) break;
        }
    }

    int64_t place(const PerToken& tensor, int t) const {
        return batch * tensor.batch + sequence * tensor.sequence + route[t] * tensor.route + row[t] * tensor.row +
               column[t] * tensor.column;
    }

    // Where each token's first channel of a block lies; nowhere where there is no such tensor.
    template <class Stored>
    void find(const PerToken& tensor, int64_t channel, typename Stored::Bits** places) const {
        if (!tensor.data) return;
        for (int t = 0; t < count; ++t) places[t] = (typename Stored::Bits*)tensor.data + place(tensor, t) + channel;
    }

private:
    void gather(Real* to, const PerToken& tensor, int t, int64_t size) const {
        const auto* from = (const typename T::Bits*)tensor.data + place(tensor, t);
        for (int64_t i = 0; i < size; ++i) to[i * CHUNK] = read_one<T>(from + i);
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

// --- forward --------------------------------------------------------------------------------------------------------

// One register of channels, `count` tokens from t on.
template <class T, class Out, bool full, int count, class Real = typename T::Real>
void forward_tile(const Scan& scan, const Chunk<T>& chunk, int t, typename T::Bits* const* x_at,
                  typename T::Bits* const* delta_at, typename Out::Bits* const* y_at, int64_t offset, int lanes,
                  const Weights<Real>& weights, Real* state, int64_t state_stride, bool fetch) {
    const Real* shared = chunk.shared + t;
    Vec<Real> step[count], drive[count], y[count];
    steps<T, full, count>(scan, shared, delta_at + t, offset, lanes, weights, step);
    for (int i = 0; i < count; ++i) {
        if (scan.softplus) step[i] = softplus(step[i]);
        if (fetch) __builtin_prefetch(x_at[t + count + i] + offset);
        const Vec<Real> x = read<T, full>(x_at[t + i] + offset, lanes);
        drive[i] = step[i] * x;
        y[i] = load(weights.Dskip) * x;
    }
    const Real *B = shared + scan.rank * CHUNK, *C = B + scan.states * CHUNK;
    for (int64_t n = 0; n < scan.states; ++n) {
        const Vec<Real> rate = load(weights.A + n * scan.padded) * (Real)log2_e;
        Vec<Real> decay[count], h = load(state + n * state_stride);
        for (int i = 0; i < count; ++i) decay[i] = exp2(step[i] * rate);
        for (int i = 0; i < count; ++i) {
            h = decay[i] * h + drive[i] * B[n * CHUNK + i];
            y[i] += C[n * CHUNK + i] * h;
        }
        store(state + n * state_stride, h);
    }
    for (int i = 0; i < count; ++i) {
        auto* to = y_at[t + i] + offset;
        if (scan.merge && chunk.route[t + i]) y[i] += read<Out, full>(to, lanes);
        write<Out, full>(to, y[i], lanes);
    }
}

template <class T, class Out, class Real = typename T::Real>
void forward_task(const Scan& scan, int64_t batch, const Block<Real>& block, Real* scratch) {
    const int64_t chunks = chunks_of(scan), padded = block.padded();
    Chunk<T> chunk;
    chunk.batch = batch, chunk.shared = scratch;
    Real* state = scratch + CHUNK * shared_width(scan);
    typename T::Bits *x_at[CHUNK + TILE], *delta_at[CHUNK];
    typename Out::Bits* y_at[CHUNK];
    // From main memory the next tile is fetched ahead: blocks of rows are no pattern that a processor foresees. From its
    // caches that costs more than it brings.
    const bool fetch = scan.height * scan.width * scan.channels * sizeof(typename T::Bits) > (16 << 20);
    for (chunk.sequence = 0; chunk.sequence < scan.sequences; ++chunk.sequence) {
        std::fill_n(state, scan.states * padded, Real(0));
        for (int64_t c = 0; c < chunks; ++c) {
            chunk.fill(scan, c);
            chunk.template find<T>(scan.x, block.begin, x_at);
            std::fill_n(x_at + chunk.count, TILE, x_at[chunk.count - 1]);
            chunk.template find<T>(scan.dt, block.begin, delta_at);
            chunk.template find<Out>(scan.y, block.begin, y_at);
            Real* kept = (Real*)scan.kept + (batch * chunks + c) * scan.states * scan.sequences * scan.channels;
            for (int64_t n = 0; n < scan.states; ++n)
                std::copy_n(state + n * padded, block.channels(),
                            kept + (n * scan.sequences + chunk.sequence) * scan.channels + block.begin);
            for (int t = 0; t < chunk.count;) {
                const bool whole = t + TILE <= chunk.count;
                for (int64_t d = 0; d < block.channels(); d += block.width) {
                    const Weights<Real> weights(scan, set_of(scan, chunk.sequence), block.begin + d);
                    const int lanes = block.lanes(block.begin + d);
                    const auto tile = !whole                ? forward_tile<T, Out, false, 1>
                                      : lanes < block.width ? forward_tile<T, Out, false, TILE>
                                                            : forward_tile<T, Out, true, TILE>;
                    tile(scan, chunk, t, x_at, delta_at, y_at, d, lanes, weights, state + d, padded, fetch);
                }
                t += whole ? TILE : 1;
            }
        }
    }
}

// --- backward -------------------------------------------------------------------------------------------------------

// What the backward pass of a task holds: rows of `width` lanes for the tokens of a chunk, one register at a time.
template <class Real> struct Workspace {
    static constexpr int width = Simd<Real>::width, row = CHUNK * width;
    Real *shared, *wanted, *dstep, *dB, *dC;
    Real *step, *slope, *x, *dy, *decay, *state, *gB, *dstep_rate;

    // Of block.padded() = padded channels; returns how many numbers it takes, with base null to ask for that.
    static int64_t size(const Scan& scan, int64_t padded) {
        return CHUNK * shared_width(scan) + (scan.states + CHUNK) * padded + 2 * scan.states * row + 8 * row + width;
    }

    Workspace(const Scan& scan, int64_t padded, Real* base) {
        const auto take = [&base](int64_t count) { return (base += count) - count; };
        shared = take(CHUNK * shared_width(scan));
        wanted = take(scan.states * padded);
        dstep = take(CHUNK * padded);
        dB = take(scan.states * row), dC = take(scan.states * row);
        step = take(row), slope = take(row), x = take(row), dy = take(row), decay = take(row);
        state = take(row + width), gB = take(row), dstep_rate = take(row);
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

// State number n of one register of channels: from `state` forwards again, then g = dL/dh backwards from `wanted`.
// Adds to dB, dC, gB = B g and dstep; returns its part of dA.
template <class Real>
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

// Where the tokens of a chunk have the first channel of a block.
template <class T, class Out> struct BackwardPlaces {
    typename T::Bits *x[CHUNK], *delta[CHUNK], *dy[CHUNK], *ddelta[CHUNK];
    typename Out::Bits* dx[CHUNK];

    BackwardPlaces(const Scan& scan, const Chunk<T>& chunk, int64_t channel) {
        chunk.template find<T>(scan.x, channel, x);
        chunk.template find<T>(scan.dt, channel, delta);
        chunk.template find<T>(scan.dy, channel, dy);
        chunk.template find<T>(scan.ddelta, channel, ddelta);
        chunk.template find<Out>(scan.dx, channel, dx);
    }
};

// One register of channels, d of the block on, over a chunk: all gradients but those summed over channels, which it adds
// to work.dB and work.dC or leaves to be made of work.dstep.
template <class T, class Out, bool full, class Real = typename T::Real>
void backward_register(const Scan& scan, const Block<Real>& block, const Chunk<T>& chunk,
                       const BackwardPlaces<T, Out>& places, int64_t d, const Real* kept, const Workspace<Real> work,
                       Real* weight_parts) {
    constexpr int width = Simd<Real>::width;
    const int64_t padded = block.padded(), set = set_of(scan, chunk.sequence), rank = scan.rank, states = scan.states;
    const int count = chunk.count, lanes = block.lanes(block.begin + d);
    const Weights<Real> weights(scan, set, block.begin + d);
    int t = 0;
    for (; t + TILE <= count; t += TILE)
        backward_read<T, full, TILE>(scan, work.shared, t, places.x, places.delta, places.dy, d, lanes, weights, work);
    for (; t < count; ++t)
        backward_read<T, full, 1>(scan, work.shared, t, places.x, places.delta, places.dy, d, lanes, weights, work);

    Real* dW_dt = weight_parts + set * (rank + states + 2) * scan.padded + block.begin + d;
    Real *dA = dW_dt + rank * scan.padded, *db_dt = dA + states * scan.padded, *dDskip = db_dt + scan.padded;
    for (int64_t n = 0; n < states; ++n) {
        Vec<Real> start{};
        memcpy(&start, kept + (n * scan.sequences + chunk.sequence) * scan.channels + block.begin + d,
               lanes * sizeof(Real));
        const Vec<Real> sum = backward_state(scan, count, n, start, work.wanted + n * padded + d,
                                             load(weights.A + n * scan.padded), work);
        store(dA + n * scan.padded, load(dA + n * scan.padded) + sum);
    }

    // The walk goes backwards: at each place of the map the last route comes first, and others add to what it left.
    const int64_t last_route = scan.one_map ? scan.sequences * scan.routes - 1 : -1;
    const Vec<Real> skip = load(weights.Dskip);
    Vec<Real> bias_sum = load(db_dt), skip_sum = load(dDskip);
    for (t = count - 1; t >= 0; --t) {
        const int64_t at = t * width;
        const Vec<Real> x = load(work.x + at), dy = load(work.dy + at), gB = load(work.gB + at);
        const Vec<Real> dstep = (load(work.dstep_rate + at) + gB * x) * load(work.slope + at);
        Vec<Real> dx = gB * load(work.step + at) + skip * dy;
        if (last_route >= 0 && chunk.route[t] != last_route) dx += read<Out, full>(places.dx[t] + d, lanes);
        write<Out, full>(places.dx[t] + d, dx, lanes);
        if (rank == 0) write<T, full>(places.ddelta[t] + d, dstep, lanes);
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
void backward_chunk(const Scan& scan, const Block<Real>& block, const Chunk<T>& chunk, const Real* kept,
                    const Workspace<Real>& work, Real* weight_parts) {
    constexpr int width = Simd<Real>::width;
    const int64_t padded = block.padded(), set = set_of(scan, chunk.sequence);
    const BackwardPlaces<T, Out> places(scan, chunk, block.begin);
    for (int t = 0; t < chunk.count; ++t) {
        __builtin_prefetch(places.x[t]);
        __builtin_prefetch(places.dy[t]);
    }
    std::fill_n(work.dB, 2 * scan.states * work.row, Real(0));  // dC lies behind it
    for (int64_t d = 0; d < block.channels(); d += width) {
        const auto one = block.lanes(block.begin + d) == width ? backward_register<T, Out, true>
                                                               : backward_register<T, Out, false>;
        one(scan, block, chunk, places, d, kept, work, weight_parts);
    }

    // A token's dt, B and C serve all routes where these share their parameters: first the last route, as above.
    const int64_t wide = shared_width(scan), sets = sets_of(scan), size = scan.height * scan.width;
    const int64_t last_route = scan.sequences * scan.routes - 1;
    Real* parts[CHUNK];
    for (int t = chunk.count - 1; t >= 0; --t) {
        const int64_t token = chunk.row[t] * scan.width + chunk.column[t];
        parts[t] = (Real*)scan.token_parts +
                   (((block.index * scan.batch + chunk.batch) * size + token) * sets + set) * wide;
        if (!scan.shared || chunk.route[t] == last_route) std::fill_n(parts[t], wide, Real(0));
        for (int64_t n = 0; n < scan.states; ++n) {
            parts[t][scan.rank + n] += lane_sum(load(work.dB + (t * scan.states + n) * width));
            parts[t][scan.rank + scan.states + n] += lane_sum(load(work.dC + (t * scan.states + n) * width));
        }
    }
    const Real* rows = (const Real*)scan.W_dt_rows + (set * scan.padded + block.begin) * scan.padded_rank;
    int t = 0;
    for (; t + TILE <= chunk.count; t += TILE)
        add_ddt<TILE>(scan, rows, work.dstep + t * padded, block.channels(), padded, parts + t);
    for (; t < chunk.count; ++t) add_ddt<1>(scan, rows, work.dstep + t * padded, block.channels(), padded, parts + t);
}

template <class T, class Out, class Real = typename T::Real>
void backward_task(const Scan& scan, int64_t group, const Block<Real>& block, Real* scratch) {
    const int64_t chunks = chunks_of(scan);
    const Workspace<Real> work(scan, block.padded(), scratch);
    Chunk<T> chunk;
    chunk.shared = work.shared;
    Real* weight_parts =
        (Real*)scan.weight_parts + group * sets_of(scan) * (scan.rank + scan.states + 2) * scan.padded;
    const int64_t end = scan.batch * (group + 1) / scan.groups;
    for (chunk.batch = scan.batch * group / scan.groups; chunk.batch < end; ++chunk.batch) {
        for (chunk.sequence = scan.sequences - 1; chunk.sequence >= 0; --chunk.sequence) {
            std::fill_n(work.wanted, scan.states * block.padded(), Real(0));
            for (int64_t c = chunks - 1; c >= 0; --c) {
                chunk.fill(scan, c);
                const Real* kept =
                    (const Real*)scan.kept + (chunk.batch * chunks + c) * scan.states * scan.sequences * scan.channels;
                backward_chunk<T, Out>(scan, block, chunk, kept, work, weight_parts);
            }
        }
    }
}

// --- tasks over threads ---------------------------------------------------------------------------------------------

template <class Real> int64_t scratch_size(const Scan& scan) {
    return Workspace<Real>::size(scan, Block<Real>::most_padded(scan.channels, scan.blocks));
}

template <class T, class Out, bool forward> void run(const Scan& scan) {
    using Real = typename T::Real;
    const auto task = [&](int64_t index, Real* scratch) {
        const Block<Real> block(scan.channels, scan.blocks, index % scan.blocks);
        if constexpr (forward)
            forward_task<T, Out>(scan, index / scan.blocks, block, scratch);
        else
            backward_task<T, Out>(scan, index / scan.blocks, block, scratch);
    };
    const int64_t outer = forward ? scan.batch : scan.groups;
    in_parallel(scan.threads, outer * scan.blocks, (Real*)scan.scratch, scratch_size<Real>(scan), task);
}

template <bool forward> void run_any(const Scan& scan) {
    switch (scan.dtype) {
        case 0: return run<f32, f32, forward>(scan);
        case 1: return run<f64, f64, forward>(scan);
        case 2: return scan.wide ? run<bf16, f32, forward>(scan) : run<bf16, bf16, forward>(scan);
        case 3: return scan.wide ? run<f16, f32, forward>(scan) : run<f16, f16, forward>(scan);
    }
}

}  // namespace

extern "C" {

// How many numbers of the state's dtype each thread needs as scratch.
EXPORT int64_t mmmsv_scan_scratch(const Scan* scan) {
    return scan->dtype == 1 ? scratch_size<double>(*scan) : scratch_size<float>(*scan);
}

EXPORT void mmmsv_scan_forward(const Scan* scan) { run_any<true>(*scan); }

EXPORT void mmmsv_scan_backward(const Scan* scan) { run_any<false>(*scan); }

}  // extern "C"
