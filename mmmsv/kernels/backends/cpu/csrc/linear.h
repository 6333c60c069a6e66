// Linear layers, for results alone.
//
//     y = activation(x W^T + b) + residual
//
// A tile of y, some rows by some registers of columns, stays in registers while its sums run over the inputs. It reads W
// as a panel: the weights of its columns, input by input. Panels are made here, call by call: nothing is kept that a
// change of W could make stale, and reading W from memory takes longer than turning it around.
#pragma once

#include "activations.h"
#include "tasks.h"

extern "C" {

struct Linear {
    int64_t dtype, weight_dtype;     // float32 or bfloat16, as places in DTYPES of library.py; of W and b: float32, or dtype
    int64_t rows, inputs, outputs;
    int64_t activation;              // of enum Activation
    int64_t threads;
    const void *x, *weight, *bias;   // (rows, inputs), (outputs, inputs), (outputs) or null
    const void* residual;            // (rows, outputs), or null; it may be y
    void* y;                         // (rows, outputs)
    float* scratch;                  // for each thread as many numbers as mmmsv_linear_scratch says
    int64_t taps;                    // above 1, of a convolution: W is (outputs, inputs / taps, taps), x (rows, taps, inputs / taps)
};

void mmmsv_linear_forward(const Linear*);
int64_t mmmsv_linear_scratch(const Linear*);

// The same in pieces, for steps that share the rows of x: all panels first, then rows by any thread.
int64_t mmmsv_linear_panels(const Linear*);  // how many numbers they are
void mmmsv_linear_make_panels(const Linear*, float* panels);
void mmmsv_linear_multiply(const Linear*, const float* panels);

int64_t mmmsv_linear_most_rows(void);

}  // extern "C"

// Rows of a tile: of the 32 registers of AVX-512, 27 hold sums and 3 a piece of the panel; of 16, 12 and 3.
constexpr int ROWS = REGISTER_BYTES == 64 ? 9 : 4;

// Rows in blocks of whole tiles, few enough to stay in the cache while all panels pass.
class RowBlocks {
    static constexpr int64_t TILES = 8;
    const int64_t rows, tiles;

public:
    const int64_t count;

    RowBlocks(int64_t rows, int64_t threads)
        : rows(rows), tiles(ceil_div(rows, ROWS)), count(std::max(ceil_div(tiles, TILES), std::min(tiles, 4 * threads))) {}
    int64_t begin(int64_t block) const { return std::min(tiles * block / count * ROWS, rows); }
    // Memory for the rows of a block, of some bytes each, in floats; whole lines of the cache.
    static int64_t floats(int64_t bytes) { return ceil_div(TILES * ROWS * bytes, 64) * 64 / sizeof(float); }
};
