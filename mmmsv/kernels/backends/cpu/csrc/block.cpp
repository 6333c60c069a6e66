// The forward pass of whole blocks, for their result alone. Plain C interface (at the end), called by block.py.
//
// Each block is
//
//     x = x + out_proj(SE(y) y SiLU(z)),   y = merge(scans),   (inner, z) = in_proj(LN(x))
//     x = x + FFN(LN(x))   or   x + LN(FFN(x))   or nothing
//
// What lies between two steps is scratch, the same for every group of images, and so stays in the processor's cache. Bias,
// GELU and the sum with x come where a product writes its tile. Where there are many tokens, the norms of C channels and z
// are computed for a block of rows on its way into a product or out of one, and are never whole maps. Nothing outlives the
// call.

#include <ctime>

#include "block.h"
#include "depthwise.h"
#include "gate.h"
#include "linear.h"
#include "merge.h"
#include "scan.h"
#include "scratch.h"

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
    const bool many;  // rows, so that products are computed block by block of them
    const bool idle;  // nothing is computed, but scratch taken all the same

public:
    Forward(const Blocks& call, const BlockWeights& block, int64_t images, Scratch& scratch)
        : call(call), block(block), images(images), H(call.height), W(call.width), h(halved(H)), w(halved(W)),
          tokens(images * H * W), half_tokens(images * h * w), C(call.channels), D(block.inner), scratch(scratch),
          many(tokens > mmmsv_linear_most_rows()), idle(scratch.only_measures()) {}

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
        const Bits* normal = many ? nullptr : norm_of(x, block.norm1);
        Bits *inner = scratch.take<Bits>(tokens * D), *merged = scratch.take<Bits>(tokens * D);
        project(IN_PROJ, x, block.norm1, normal, block.in_proj, D, inner);
        scan_and_merge(inner, merged);
        float* weight = block.reduce.weight ? scratch.take<float>(images * D) : nullptr;
        if (weight) squeeze_excite(merged, weight);
        const auto *z_weight = (const WeightBits*)block.in_proj.weight + D * C, *z_bias = (const WeightBits*)block.in_proj.bias;
        const Layer z_layer{z_weight, z_bias ? z_bias + D : nullptr};
        if (block.gated && many) return gate_and_project(x, z_layer, merged, weight, y);
        Bits* z = block.gated ? inner : nullptr;  // which was read
        if (z) project(IN_PROJ, x, block.norm1, normal, z_layer, D, z);
        if (z || weight) gate(merged, z, weight);
        linear(OUT_PROJ, merged, tokens, D, block.out_proj, C, y, NONE, x);
    }

    // y = x + out_proj(gate(merged, z, weight)), z = layer(LN(x))
    void gate_and_project(const Bits* x, const Layer& layer, const Bits* merged, const float* weight, Bits* y) {
        const Scratch::Scope scope(scratch);
        const Linear in = describe(layer, C, D), out = describe(block.out_proj, D, C);
        const float *in_panels = panels_of(OUT_PROJ, in), *out_panels = panels_of(OUT_PROJ, out);
        for_row_blocks(OUT_PROJ, C + D, [&](int64_t begin, int64_t count, Bits* normal) {
            Bits* z = normal + count * C;
            norm_rows<T, Weight>(x + begin * C, block.norm1, count, C, normal);
            multiply(in, in_panels, count, normal, z);
            for (int64_t row = 0; row < count; ++row) {
                const float* of_image = weight ? weight + (begin + row) / (H * W) * D : nullptr;
                const Bits* from = merged + (begin + row) * D;
                for_registers<float>(D, [&](auto full, int64_t d, int lanes) {
                    const Floats y = read<T, full>(from + d, lanes), s = activate(SILU, read<T, full>(z + row * D + d, lanes));
                    write<T, full>(z + row * D + d, (of_image ? y * read_real<full>(of_image + d, lanes) : y) * s, lanes);
                });
            }
            multiply(out, out_panels, count, z, y + begin * C, x + begin * C);
        });
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
        const Activation activation = block.gelu ? GELU : NONE;
        if (block.post_norm)
            linear(FC1, y, tokens, C, block.fc1, F, hidden, activation);
        else {
            const Scratch::Scope norm_scope(scratch);
            project(FC1, y, block.norm2, many ? nullptr : norm_of(y, block.norm2), block.fc1, F, hidden, activation);
        }
        if (block.dwconv.weight) {
            Bits* mixed = scratch.take<Bits>(tokens * F);
            conv(hidden, block.dwconv, F, mixed);
            hidden = mixed;
        }
        if (!block.post_norm) return linear(FC2, hidden, tokens, F, block.fc2, C, y, NONE, y);
        if (many) {
            const Linear fc2 = describe(block.fc2, F, C);
            const float* panels = panels_of(FC2, fc2);
            return for_row_blocks(FC2, C, [&](int64_t begin, int64_t count, Bits* branch) {
                multiply(fc2, panels, count, hidden + begin * F, branch);
                norm_rows<T, Weight>(branch, block.norm2, count, C, y + begin * C, y + begin * C);
            });
        }
        Bits* branch = scratch.take<Bits>(tokens * C);
        linear(FC2, hidden, tokens, F, block.fc2, C, branch);
        norm(branch, block.norm2, tokens, C, y, y);
    }

    // --- steps -----------------------------------------------------------------------------------------------------

    // y = LN(x) + residual
    void norm(const Bits* x, const LayerNorm& layer, int64_t rows, int64_t dim, Bits* y, const Bits* residual = nullptr) {
        if (idle) return;
        const Timer timer(call, NORM);
        for_tokens(call.threads, rows, [&](int64_t row) {
            norm_rows<T, Weight>(x + row * dim, layer, 1, dim, y + row * dim, residual ? residual + row * dim : nullptr);
        });
    }

    // LN(x) of all tokens, in scratch.
    const Bits* norm_of(const Bits* x, const LayerNorm& layer) {
        Bits* normal = scratch.take<Bits>(tokens * C);
        norm(x, layer, tokens, C, normal);
        return normal;
    }

    Linear describe(const Layer& layer, int64_t inputs, int64_t outputs, Activation activation = NONE) const {
        Linear linear{dtype, call.weight_dtype, tokens, inputs, outputs, activation, call.threads};
        linear.weight = layer.weight, linear.bias = layer.bias;
        return linear;
    }

    void linear(Step step, const Bits* x, int64_t rows, int64_t inputs, const Layer& layer, int64_t outputs, Bits* y,
                Activation activation = NONE, const Bits* residual = nullptr) {
        Linear linear = describe(layer, inputs, outputs, activation);
        linear.rows = rows, linear.x = x, linear.residual = residual, linear.y = y;
        run(step, mmmsv_linear_forward, mmmsv_linear_scratch, linear);
    }

    // y = activation(layer(LN(x))) of all tokens; normal: LN(x), or null where it is computed on the way.
    void project(Step step, const Bits* x, const LayerNorm& layer_norm, const Bits* normal, const Layer& layer,
                 int64_t outputs, Bits* y, Activation activation = NONE) {
        if (normal) return linear(step, normal, tokens, C, layer, outputs, y, activation);
        const Scratch::Scope scope(scratch);
        const Linear all = describe(layer, C, outputs, activation);
        const float* panels = panels_of(step, all);
        for_row_blocks(step, C, [&](int64_t begin, int64_t count, Bits* rows) {
            norm_rows<T, Weight>(x + begin * C, layer_norm, count, C, rows);
            multiply(all, panels, count, rows, y + begin * outputs);
        });
    }

    const float* panels_of(Step step, const Linear& linear) {
        float* panels = scratch.take<float>(mmmsv_linear_panels(&linear));
        if (idle) return panels;
        const Timer timer(call, step);
        mmmsv_linear_make_panels(&linear, panels);
        return panels;
    }

    static void multiply(Linear linear, const float* panels, int64_t rows, const Bits* x, Bits* y, const Bits* residual = nullptr) {
        linear.rows = rows, linear.x = x, linear.residual = residual, linear.y = y;
        mmmsv_linear_multiply(&linear, panels);
    }

    // Call body(begin, count, memory) for blocks of tokens, with room for `each` numbers of each token.
    template <class Body> void for_row_blocks(Step step, int64_t each, const Body& body) {
        const int64_t size = RowBlocks::floats(each * sizeof(Bits));
        float* memory = scratch.take<float>(call.threads * size);
        if (idle) return;
        const Timer timer(call, step);
        const RowBlocks blocks(tokens, call.threads);
        in_parallel(call.threads, blocks.count, memory, size, [&](int64_t block, float* own) {
            const int64_t begin = blocks.begin(block);
            body(begin, blocks.begin(block + 1) - begin, (Bits*)own);
        });
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

    // Numbers of scratch for each thread. Fewer images may need more: products of few rows are computed otherwise.
    int64_t scratch() const {
        const int64_t rest = all.batch - own * all.threads;
        const auto most = [](const Blocks& call, int64_t images, int64_t at_once) {
            return at_once ? std::max(measure(call, at_once), measure(call, images % at_once)) : 0;
        };
        return std::max(most(one, own, own_at_once), ceil_div(most(all, rest, together), all.threads));
    }

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
