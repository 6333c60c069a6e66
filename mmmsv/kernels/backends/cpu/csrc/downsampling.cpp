// Layers that lower the resolution. Plain C interface (at the end), called by downsampling.py.
//
// The patches of some rows of y are gathered side by side, and are then the rows of a product (linear.cpp): of few rows all
// at once, of many a block at a time, which stays in the cache, norms included.

#include "linear.h"
#include "downsampling.h"
#include "scratch.h"

namespace {

template <class T, class Weight> class Forward {
    using Bits = typename T::Bits;
    static constexpr int64_t dtype = std::is_same_v<T, f32> ? 0 : 2;

    const Downsampling& call;
    const int64_t rows, inputs;
    Scratch& scratch;
    const bool idle;  // nothing is computed, but scratch taken all the same

public:
    Forward(const Downsampling& call, Scratch& scratch)
        : call(call), rows(call.batch * call.out_height * call.out_width),
          inputs(call.kernel * call.kernel * call.channels), scratch(scratch), idle(scratch.only_measures()) {}

    void run() {
        Linear linear{dtype, call.weight_dtype, rows, inputs, call.outputs, NONE, call.threads};
        linear.weight = call.weight, linear.bias = call.bias;
        linear.taps = call.taps_last ? call.kernel * call.kernel : 1;
        rows > mmmsv_linear_most_rows() ? run_many(linear) : run_few(linear);
    }

private:
    void run_few(Linear linear) {
        Bits* patches = scratch.take<Bits>(rows * inputs);
        linear.x = patches, linear.y = call.y;
        linear.scratch = scratch.take<float>(linear.threads * mmmsv_linear_scratch(&linear));
        if (idle) return;
        const auto for_each_row = [&](const auto& body) {
            in_parallel(call.threads, rows, (float*)nullptr, 0, [&](int64_t row, float*) { body(row); });
        };
        for_each_row([&](int64_t row) { gather(row, 1, patches + row * inputs); });
        mmmsv_linear_forward(&linear);
        if (call.norm_out.weight) for_each_row([&](int64_t row) { normalise(row, 1); });
    }

    void run_many(Linear linear) {
        float* panels = scratch.take<float>(mmmsv_linear_panels(&linear));
        const int64_t size = RowBlocks::floats(inputs * sizeof(Bits));
        float* memory = scratch.take<float>(call.threads * size);
        if (idle) return;
        mmmsv_linear_make_panels(&linear, panels);
        const RowBlocks blocks(rows, call.threads);
        in_parallel(call.threads, blocks.count, memory, size, [&](int64_t block, float* own) {
            const int64_t begin = blocks.begin(block), count = blocks.begin(block + 1) - begin;
            gather(begin, count, (Bits*)own);
            Linear some = linear;
            some.rows = count, some.x = own, some.y = y_at(begin);
            mmmsv_linear_multiply(&some, panels);
            if (call.norm_out.weight) normalise(begin, count);
        });
    }

    Bits* y_at(int64_t row) const { return (Bits*)call.y + row * call.outputs; }

    void normalise(int64_t row, int64_t count) const {
        norm_rows<T, Weight>(y_at(row), call.norm_out, count, call.outputs, y_at(row));
    }

    // Lay the patches of some rows of y side by side, through the first norm.
    void gather(int64_t begin, int64_t count, Bits* to) const {
        for (int64_t row = begin; row < begin + count; ++row, to += inputs) {
            const int64_t column = row % call.out_width, line = row / call.out_width % call.out_height;
            const Bits* image = (const Bits*)call.x + row / call.out_width / call.out_height * call.height * call.width * call.channels;
            Bits* at = to;
            for (int64_t outer = 0; outer < call.kernel; ++outer)
                for (int64_t inner = 0; inner < call.kernel; ++inner, at += call.channels) {
                    const int64_t ky = call.columns_first ? inner : outer, kx = call.columns_first ? outer : inner;
                    const int64_t y = line * call.stride - call.padding + ky, x = column * call.stride - call.padding + kx;
                    if (y >= 0 && y < call.height && x >= 0 && x < call.width)
                        std::copy_n(image + (y * call.width + x) * call.channels, call.channels, at);
                    else
                        std::fill_n(at, call.channels, Bits(0));
                }
            if (call.norm_in.weight) norm_rows<T, Weight>(to, call.norm_in, 1, inputs, to);
        }
    }
};

void run(const Downsampling& call, Scratch& scratch) {
    if (call.dtype == 0) return Forward<f32, f32>(call, scratch).run();
    if (call.weight_dtype == 0) return Forward<bf16, f32>(call, scratch).run();
    Forward<bf16, bf16>(call, scratch).run();
}

}  // namespace

extern "C" {

// How many numbers each thread needs as scratch.
EXPORT int64_t mmmsv_downsampling_scratch(const Downsampling* call) {
    Scratch scratch(nullptr);
    run(*call, scratch);
    return ceil_div(scratch.floats(), call->threads);
}

EXPORT void mmmsv_downsampling_forward(const Downsampling* call) {
    Scratch scratch(call->scratch);
    run(*call, scratch);
}

}  // extern "C"
