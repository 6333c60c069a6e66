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
};

void mmmsv_linear_forward(const Linear*);
int64_t mmmsv_linear_scratch(const Linear*);

}  // extern "C"
