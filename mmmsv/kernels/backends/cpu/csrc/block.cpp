// The forward pass of whole blocks, for their result alone. Plain C interface (at the end), called by block.py.
//
// Each block is
//
//     x = x + out_proj(SE(y) y SiLU(z)),   y = merge(scans),   (inner, z) = in_proj(LN(x))
//     x = x + FFN(LN(x))   or   x + LN(FFN(x))   or nothing
//
// What lies between two steps is scratch, the same for every group of images, and so stays in the processor's cache. Bias,
// GELU and the sum with x come where a product writes its tile. Nothing outlives the call.

#include <ctime>

#include "block.h"
#include "depthwise.h"
#include "gate.h"
#include "linear.h"
#include "merge.h"
#include "moments.h"
#include "scan.h"

namespace {

// Tokens of the images that one thread, or all threads together, take at once: few enough that what lies between the steps
// stays in the cache, and enough for each read of the weights to serve many rows.
constexpr int64_t TOKENS_OF_ONE = 800, TOKENS_OF_ALL = 3200;

// Places in _STEPS of block.py.
enum Step { NORM, IN_PROJ, CONV, X_PROJ, SCAN, MERGE, SQUEEZE_EXCITE, GATE, OUT_PROJ, FC1, FC2 };

// Adds the time of its life to that of a step, where anyone wants to know.
class Timer {
    double* const seconds;
    const double begin;

    static double now() {
        timespec time;
        clock_gettime(CLOCK_MONOTONIC, &time);
        return time.tv_sec + time.tv_nsec * 1e-9;
    }

public:
    Timer(const Blocks& call, Step step)
        : seconds(call.seconds ? call.seconds + step : nullptr), begin(seconds ? now() : 0) {}
    ~Timer() {
        if (seconds) *seconds += now() - begin;
    }
};

template <class Body> void for_tokens(int64_t threads, int64_t tokens, const Body& body) {
    const int64_t parts = std::min(tokens, 4 * threads);
    in_parallel(threads, parts, (float*)nullptr, 0, [&](int64_t part, float*) {
        for (int64_t token = tokens * part / parts; token < tokens * (part + 1) / parts; ++token) body(token);
    });
}

Map dense_map(const void* data, int64_t height, int64_t width, int64_t channels) {
    return {(void*)data, height * width * channels, width * channels, channels};
}

// Some images on their way through the block. T: of their maps.
template <class T, class Weight> class Forward {
    using Bits = typename T::Bits;
    using WeightBits = typename Weight::Bits;
    static constexpr int64_t dtype = std::is_same_v<T, f32> ? 0 : 2;

    const Blocks& call;
    const BlockWeights& block;
    const int64_t images, H, W, h, w, tokens, half_tokens, C, D;
    Scratch& scratch;
    const bool idle;  // nothing is computed, but scratch taken all the same

public:
    Forward(const Blocks& call, const BlockWeights& block, int64_t images, Scratch& scratch)
        : call(call), block(block), images(images), H(call.height), W(call.width), h(halved(H)), w(halved(W)),
          tokens(images * H * W), half_tokens(images * h * w), C(call.channels), D(block.inner), scratch(scratch),
          idle(scratch.only_measures()) {}

    // y may be x.
    void run(const void* x, void* y) {
        scan_branch((const Bits*)x, (Bits*)y);
        if (block.fc1.weight) ffn_branch((Bits*)y);
    }

private:
    int64_t halved(int64_t side) const { return block.half_conv.weight ? ceil_div(side, block.half_conv.stride) : 0; }

    // y = x + out_proj(...)
    void scan_branch(const Bits* x, Bits* y) {
        const Scratch::Scope scope(scratch);
        Bits *inner = scratch.take<Bits>(tokens * D), *z = block.gated ? scratch.take<Bits>(tokens * D) : nullptr;
        project_in(x, inner, z);
        Bits* merged = scratch.take<Bits>(tokens * D);
        scan_and_merge(inner, merged);
        float* weight = block.reduce.weight ? scratch.take<float>(images * D) : nullptr;
        if (weight) squeeze_excite(merged, weight);
        if (z || weight) gate(merged, z, weight);
        linear(OUT_PROJ, merged, tokens, D, block.out_proj, C, y, NONE, x);
    }

    void project_in(const Bits* x, Bits* inner, Bits* z) {
        const Scratch::Scope scope(scratch);
        Bits* normal = scratch.take<Bits>(tokens * C);
        norm(x, block.norm1, tokens, C, normal);
        linear(IN_PROJ, normal, tokens, C, block.in_proj, D, inner);
        if (!z) return;
        const auto *weight = (const WeightBits*)block.in_proj.weight + D * C, *bias = (const WeightBits*)block.in_proj.bias;
        linear(IN_PROJ, normal, tokens, C, {weight, bias ? bias + D : nullptr}, D, z);
    }

    // Each of the two maps also holds what comes between: inner, when it was read, what was scanned in full resolution.
    void scan_and_merge(Bits* inner, Bits* merged) {
        const Scratch::Scope scope(scratch);
        const int64_t routes = block.norm_first ? block.half_scan.routes : 1;
        Bits *half = nullptr, *full = inner, *u = merged;
        if (block.half_conv.weight) {
            half = scratch.take<Bits>(routes * half_tokens * D);
            const Scratch::Scope half_scope(scratch);
            Bits* v = scratch.take<Bits>(half_tokens * D);
            conv(inner, block.half_conv, D, v);
            scan(v, block.half_scan, h, w, !block.norm_first, half);
        }
        conv(inner, block.full_conv, D, u);
        scan(u, block.full_scan, H, W, true, full);
        half ? merge(full, half, routes, merged) : norm(full, block.out_norm, tokens, D, merged);
    }

    // y = y + FFN(LN(y)) or y + LN(FFN(y))
    void ffn_branch(Bits* y) {
        const Scratch::Scope scope(scratch);
        const int64_t F = block.hidden;
        Bits* hidden = scratch.take<Bits>(tokens * F);
        const Bits* fed = y;
        {
            const Scratch::Scope inner_scope(scratch);
            if (!block.post_norm) {
                Bits* normal = scratch.take<Bits>(tokens * C);
                norm(y, block.norm2, tokens, C, normal);
                fed = normal;
            }
            linear(FC1, fed, tokens, C, block.fc1, F, hidden, block.gelu ? GELU : NONE);
        }
        if (block.dwconv.weight) {
            Bits* mixed = scratch.take<Bits>(tokens * F);
            conv(hidden, block.dwconv, F, mixed);
            hidden = mixed;
        }
        if (!block.post_norm) return linear(FC2, hidden, tokens, F, block.fc2, C, y, NONE, y);
        Bits* branch = scratch.take<Bits>(tokens * C);
        linear(FC2, hidden, tokens, F, block.fc2, C, branch);
        norm(branch, block.norm2, tokens, C, y, y);
    }

    // --- steps -----------------------------------------------------------------------------------------------------

    // y = LN(x) + residual
    void norm(const Bits* x, const LayerNorm& layer, int64_t count, int64_t dim, Bits* y, const Bits* residual = nullptr) {
        if (idle) return;
        const Timer timer(call, NORM);
        const auto *weight = (const WeightBits*)layer.weight, *bias = (const WeightBits*)layer.bias;
        for_tokens(call.threads, count, [&](int64_t token) {
            const Bits *from = x + token * dim, *added = residual ? residual + token * dim : nullptr;
            Bits* to = y + token * dim;
            const auto token_at = [from](auto full, int64_t d, int lanes) { return read<T, full>(from + d, lanes); };
            const Moments<float> moments = measure<float>(token_at, dim, layer.eps);
            const float mean = moments.mean, scale = moments.scale;
            for_registers<float>(dim, [&](auto full, int64_t d, int lanes) {
                const Floats normal = (token_at(full, d, lanes) - mean) * scale;
                Floats value = normal * read<Weight, full>(weight + d, lanes) + read<Weight, full>(bias + d, lanes);
                if (added) value += read<T, full>(added + d, lanes);
                write<T, full>(to + d, value, lanes);
            });
        });
    }

    void linear(Step step, const Bits* x, int64_t rows, int64_t inputs, const Layer& layer, int64_t outputs, Bits* y,
                Activation activation = NONE, const Bits* residual = nullptr) {
        Linear linear{dtype, call.weight_dtype, rows, inputs, outputs, activation, call.threads};
        linear.x = x, linear.weight = layer.weight, linear.bias = layer.bias, linear.residual = residual, linear.y = y;
        run(step, mmmsv_linear_forward, mmmsv_linear_scratch, linear);
    }

    void conv(const Bits* x, const Conv& layer, int64_t dim, Bits* y) {
        const Scratch::Scope scope(scratch);
        DepthwiseConv conv{};
        conv.dtype = dtype, conv.batch = images, conv.height = H, conv.width = W, conv.channels = dim;
        conv.out_height = ceil_div(H, layer.stride), conv.out_width = ceil_div(W, layer.stride);
        conv.kernel = layer.kernel, conv.stride = layer.stride;
        conv.activation = layer.activation, conv.residual = layer.residual;
        conv.threads = call.threads;
        conv.x = dense_map(x, H, W, dim), conv.y = dense_map(y, conv.out_height, conv.out_width, dim);
        conv.weight = in_float(layer.weight, dim * layer.kernel * layer.kernel), conv.bias = in_float(layer.bias, dim);
        run(CONV, mmmsv_depthwise_conv_forward, mmmsv_depthwise_conv_scratch, conv);
    }

    // y: summed over the routes, (images, height, width, D), or a map for each, (images, routes, height, width, D).
    void scan(const Bits* x, const S6& s6, int64_t height, int64_t width, bool merge, Bits* y) {
        const Scratch::Scope scope(scratch);
        const int64_t R = block.rank, N = block.states, sets = s6.carry ? 1 : s6.routes, size = sets * (R + 2 * N);
        Bits* projected = scratch.take<Bits>(images * height * width * size);
        linear(X_PROJ, x, images * height * width, D, s6.x_proj, size, projected);
        Scan scan{};
        scan.dtype = dtype, scan.batch = images, scan.height = height, scan.width = width;
        scan.channels = D, scan.states = N, scan.rank = R;
        scan.sequences = s6.carry ? 1 : s6.routes, scan.routes = s6.carry ? s6.routes : 1;
        scan.one_map = 1, scan.merge = merge, scan.shared = sets == 1, scan.softplus = 1, scan.threads = call.threads;
        // Enough for two tasks a thread, and few enough channels for the states to stay in the cache.
        const int64_t blocks = std::max(ceil_div(2 * call.threads, images), ceil_div(D, 512));
        scan.blocks = std::min(blocks, ceil_div(D, 16));
        scan.route_codes = s6.codes;
        const auto per_token = [&](Bits* data) {
            return PerToken{data, height * width * size, sets == 1 ? 0 : R + 2 * N, 0, width * size, size};
        };
        scan.x = {(void*)x, height * width * D, 0, 0, width * D, D};
        scan.dt = per_token(projected), scan.B = per_token(projected + R), scan.C = per_token(projected + R + N);
        const int64_t map = height * width * D;
        scan.y = {y, merge ? map : s6.routes * map, 0, merge ? 0 : map, width * D, D};
        lay_out_weights(s6, sets, scan);
        run(SCAN, mmmsv_scan_forward, mmmsv_scan_scratch, scan);
    }

    // The weights of a scan, channels last, and A = -exp(A_log).
    void lay_out_weights(const S6& s6, int64_t sets, Scan& scan) {
        const int64_t R = block.rank, N = block.states, padded = ceil_div(D, 16) * 16;
        float *W_dt = scratch.take<float>(sets * R * padded), *b_dt = scratch.take<float>(sets * padded);
        float *A = scratch.take<float>(sets * N * padded), *Dskip = scratch.take<float>(sets * padded);
        scan.padded = padded, scan.W_dt = W_dt, scan.b_dt = b_dt, scan.A = A, scan.Dskip = Dskip;
        if (idle) return;
        const Timer timer(call, SCAN);
        const auto put = [&](const void* weights, int64_t set, int64_t each, int64_t begin, int64_t lanes, float* to) {
            const auto* from = (const WeightBits*)weights;
            for (int64_t i = 0; i < each; ++i) {
                float* line = to + (set * each + i) * padded + begin;
                for (int64_t lane = 0; lane < 16; ++lane)
                    line[lane] = lane < lanes ? read_one<Weight>(from + (set * D + begin + lane) * each + i) : 0;
            }
        };
        for_tokens(call.threads, sets * padded / 16, [&](int64_t index) {
            const int64_t set = index / (padded / 16), begin = index % (padded / 16) * 16;
            const int64_t lanes = std::min<int64_t>(16, D - begin);
            put(s6.W_dt, set, R, begin, lanes, W_dt), put(s6.b_dt, set, 1, begin, lanes, b_dt);
            put(s6.A_log, set, N, begin, lanes, A), put(s6.Dskip, set, 1, begin, lanes, Dskip);
            for (int64_t n = 0; n < N; ++n)
                for (float *at = A + (set * N + n) * padded + begin, *end = at + 16; at < end; at += Simd<float>::width)
                    store(at, -exp2(load(at) * (float)log2_e));
        });
    }

    void merge(const Bits* full, const Bits* half, int64_t routes, Bits* y) {
        const Scratch::Scope scope(scratch);
        Merge merge{};
        merge.dtype = dtype, merge.batch = images, merge.height = H, merge.width = W;
        merge.half_height = h, merge.half_width = w, merge.channels = D, merge.routes = routes;
        merge.norm_first = block.norm_first, merge.eps = block.out_norm.eps;
        merge.parts = std::min(4 * call.threads, images * H), merge.threads = call.threads;
        merge.weight = in_float(block.out_norm.weight, D), merge.bias = in_float(block.out_norm.bias, D);
        merge.full = dense_map(full, H, W, D), merge.y = dense_map(y, H, W, D);
        merge.half = dense_map(half, h, w, D), merge.half.batch *= routes, merge.half_route = h * w * D;
        merge.moments = scratch.take<float>(2 * (tokens + routes * half_tokens));
        merge.half_sum = scratch.take<float>(half_tokens * D);
        run(MERGE, mmmsv_merge_forward, mmmsv_merge_scratch, merge);
    }

    // weight = sigmoid(expand(relu(reduce(mean of y)))), (images, D)
    void squeeze_excite(const Bits* y, float* weight) {
        const Scratch::Scope scope(scratch);
        float *mean = scratch.take<float>(images * D), *squeezed = scratch.take<float>(images * block.squeezed);
        if (idle) return;
        const Timer timer(call, SQUEEZE_EXCITE);
        const int64_t blocks = ceil_div(D, 64);
        for_tokens(call.threads, images * blocks, [&](int64_t index) {
            const int64_t image = index / blocks, begin = index % blocks * 64, count = std::min<int64_t>(64, D - begin);
            float* to = mean + image * D + begin;
            std::fill_n(to, count, 0.f);
            for (int64_t token = 0; token < H * W; ++token) {
                const Bits* from = y + (image * H * W + token) * D + begin;
                for_registers<float>(count, [&](auto full, int64_t d, int lanes) {
                    write_real<full>(to + d, read_real<full>(to + d, lanes) + read<T, full>(from + d, lanes), lanes);
                });
            }
            for (int64_t d = 0; d < count; ++d) to[d] /= H * W;
        });
        const auto fill = [&](float* to, const Layer& layer, const float* x, int64_t inputs, int64_t outputs, auto activate) {
            const auto *weights = (const WeightBits*)layer.weight, *bias = (const WeightBits*)layer.bias;
            for_tokens(call.threads, outputs, [&](int64_t output) {
                for (int64_t image = 0; image < images; ++image) {
                    Floats sum{};
                    for_registers<float>(inputs, [&](auto full, int64_t d, int lanes) {
                        sum += read_real<full>(x + image * inputs + d, lanes) *
                               read<Weight, full>(weights + output * inputs + d, lanes);
                    });
                    to[image * outputs + output] = activate(lane_sum(sum) + (bias ? read_one<Weight>(bias + output) : 0));
                }
            });
        };
        fill(squeezed, block.reduce, mean, D, block.squeezed, [](float value) { return value < 0 ? 0 : value; });
        fill(weight, block.expand, squeezed, block.squeezed, D, [](float value) { return sigmoid(splat(value))[0]; });
    }

    // In place.
    void gate(Bits* y, const Bits* z, const float* weight) {
        Gate gate{};
        gate.dtype = dtype, gate.batch = images, gate.height = H, gate.width = W, gate.channels = D;
        gate.parts = std::min(4 * call.threads, H), gate.threads = call.threads;
        gate.y = gate.out = dense_map(y, H, W, D), gate.weight = weight;
        if (z) gate.z = dense_map(z, H, W, D);
        run(GATE, mmmsv_gate_forward, mmmsv_gate_scratch, gate);
    }

    // Run an op of the library with the scratch that it asks for.
    template <class Op> void run(Step step, void (*forward)(const Op*), int64_t (*size)(const Op*), Op& op) {
        const Scratch::Scope scope(scratch);
        op.scratch = scratch.take<float>(op.threads * size(&op));
        if (idle) return;
        const Timer timer(call, step);
        forward(&op);
    }

    // Weights in float32: themselves, or in scratch, which whoever asks for them gives back.
    const float* in_float(const void* weights, int64_t count) {
        if (std::is_same_v<Weight, f32> || !weights) return (const float*)weights;
        float* to = scratch.take<float>(count);
        if (!idle)
            for_registers<float>(count, [&](auto full, int64_t i, int lanes) {
                write_real<full>(to + i, read<Weight, full>((const WeightBits*)weights + i, lanes), lanes);
            });
        return to;
    }
};

// Call body(Forward) of some images for the dtypes of a call.
template <class Body>
void with_dtypes(const Blocks& call, const BlockWeights& block, int64_t images, Scratch& scratch, const Body& body) {
    if (call.dtype == 0) return body(Forward<f32, f32>(call, block, images, scratch));
    if (call.weight_dtype == 0) return body(Forward<bf16, f32>(call, block, images, scratch));
    body(Forward<bf16, bf16>(call, block, images, scratch));
}

// How the images of a batch are shared out. As far as every thread can have as many as the others, each computes its own:
// none waits for another, or reads what another one has in its cache. The rest is computed by all threads together.
class Shares {
    const Blocks& all;
    Blocks one;  // as a thread by itself sees it
    int64_t own, own_at_once, together;  // images: of each thread; of those and of the rest, at once

public:
    explicit Shares(const Blocks& call) : all(call), one(call) {
        const auto at_once = [&](int64_t tokens, int64_t images) {
            return std::min(std::max<int64_t>(tokens / (call.height * call.width), 1), images);
        };
        one.threads = 1;
        own = call.threads > 1 ? call.batch / call.threads : 0;
        own_at_once = at_once(TOKENS_OF_ONE, own), together = at_once(TOKENS_OF_ALL, call.batch - own * call.threads);
    }

    // Numbers of scratch for each thread.
    int64_t scratch() const { return std::max(measure(one, own_at_once), ceil_div(measure(all, together), all.threads)); }

    void run() const {
        const int64_t each = scratch(), shared_out = own * all.threads;
        if (own)
            in_parallel(all.threads, all.threads, all.scratch, each, [&](int64_t share, float* scratch) {
                Blocks call = one;
                if (share) call.seconds = nullptr;  // the first one tells of all
                run(call, own * share, own * (share + 1), own_at_once, scratch);
            });
        if (together) run(all, shared_out, all.batch, together, all.scratch);
    }

private:
    static int64_t measure(const Blocks& call, int64_t images) {
        int64_t most = 0;
        for (int64_t index = 0; images && index < call.count; ++index) {
            Scratch scratch(nullptr);
            with_dtypes(call, call.blocks[index], images, scratch, [&](auto forward) { forward.run(call.x, call.y); });
            most = std::max(most, scratch.floats());
        }
        return most;
    }

    // Compute images from begin to end: all of them through one block, then through the next, which changes y in place.
    static void run(const Blocks& call, int64_t begin, int64_t end, int64_t at_once, float* memory) {
        const int64_t size = call.height * call.width * call.channels * (call.dtype == 0 ? 4 : 2);  // bytes of an image
        for (int64_t index = 0; index < call.count; ++index)
            for (int64_t image = begin; image < end; image += at_once) {
                Scratch scratch(memory);
                with_dtypes(call, call.blocks[index], std::min(at_once, end - image), scratch, [&](auto forward) {
                    char* y = (char*)call.y + image * size;
                    forward.run(index ? y : (const char*)call.x + image * size, y);
                });
            }
    }
};

}  // namespace

extern "C" {

// How many numbers each thread needs as scratch.
EXPORT int64_t mmmsv_blocks_scratch(const Blocks* call) { return Shares(*call).scratch(); }

EXPORT void mmmsv_blocks_forward(const Blocks* call) { Shares(*call).run(); }

// Whether this is faster than the layers one by one.
EXPORT int64_t mmmsv_blocks_are_faster(void) { return REGISTER_BYTES == 64; }

}  // extern "C"
