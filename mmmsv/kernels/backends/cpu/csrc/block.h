// Whole blocks: what the library is asked for.
#pragma once

#include "moments.h"

extern "C" {

// Weights as the modules hold them, each contiguous; a null bias is none, another null says that the whole layer is missing.
struct Layer { const void *weight, *bias; };
struct Conv { const void *weight, *bias; int64_t kernel, stride, activation, residual; };
struct S6 {
    Layer x_proj;
    const void *W_dt, *b_dt, *A_log, *Dskip;  // (S, D, R), (S, D), (S, D, N), (S, D)
    const int64_t* codes;                      // of the routes, places in ROUTES of routes.py
    int64_t routes, carry;                     // S is 1 with carry, and routes without
};

struct BlockWeights {
    int64_t inner, states, rank, squeezed, hidden;
    int64_t gated, norm_first, post_norm, gelu;  // gelu: of the FFN without a convolution
    LayerNorm norm1;
    Layer in_proj;
    Conv full_conv;
    S6 full_scan;
    Conv half_conv;
    S6 half_scan;
    LayerNorm out_norm;
    Layer reduce, expand, out_proj;
    LayerNorm norm2;
    Layer fc1;
    Conv dwconv;
    Layer fc2;
};

struct Blocks {
    // Of maps, float32 or bfloat16, and of weights, float32 or that of maps: places in DTYPES of library.py.
    int64_t dtype, weight_dtype;
    int64_t batch, height, width, channels;
    int64_t threads;
    int64_t count;
    const BlockWeights* blocks;  // one after the other
    const void* x;         // (batch, height, width, channels)
    void* y;               // as x
    float* scratch;        // for each thread as many numbers as mmmsv_blocks_scratch says
    double* seconds;       // null, or for each of _STEPS of block.py where the time that it takes is added
};

}  // extern "C"
