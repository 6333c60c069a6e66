// Layers that lower the resolution, for their result alone.
#pragma once

#include "moments.h"
#include "tasks.h"

extern "C" {

//     y = LN_out(W LN_in(patch) + b)
//
// of the patch of `kernel` x `kernel` tokens around each token of y; those beyond the map are zeros. Either norm may be
// missing (a null weight).
struct Downsampling {
    // Of maps, float32 or bfloat16, and of weights, float32 or that of maps: places in DTYPES of library.py.
    int64_t dtype, weight_dtype;
    int64_t batch, height, width, channels;
    int64_t out_height, out_width, outputs;
    int64_t kernel, stride, padding;  // padding: before the first row and column
    int64_t columns_first;            // of a patch, tokens of a column come one after the other, not those of a row
    int64_t taps_last;                // W is (outputs, channels, kernel, kernel), not (outputs, kernel, kernel, channels)
    int64_t threads;
    const void *x, *weight, *bias;    // (batch, height, width, channels); bias: or null
    LayerNorm norm_in, norm_out;
    void* y;                          // (batch, out_height, out_width, outputs)
    float* scratch;                   // for each thread as many numbers as mmmsv_downsampling_scratch says
};

}  // extern "C"
