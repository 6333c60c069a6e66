// Depthwise convolutions of channels-last maps: what the library is asked for.
#pragma once

#include "tasks.h"

extern "C" {

struct DepthwiseConv {
    int64_t dtype;  // of the maps: a place in DTYPES of library.py
    int64_t batch, height, width, channels, out_height, out_width;
    int64_t kernel, stride;        // 3 or 7, with half of it for padding; any
    int64_t activation, residual;  // of enum Activation; whether x is added to p, with stride 1 only
    int64_t blocks, parts;         // backward only: numbers of those that the channels and the batch are cut into
    int64_t threads;
    Map x, y;                   // y: forward, the result; backward, its gradient
    const void *weight, *bias;  // (D, kernel * kernel), (D) or null; in the dtype of the sums
    Map dx, dy_again, dx_again;  // backward only; what other readers give y and x is added, where there are such maps
    void* weight_parts;         // backward only; (parts, kernel * kernel + 1, D), of the gradients of weight and bias
    void* scratch;              // for each thread, as many numbers as mmmsv_depthwise_conv_scratch says
};

void mmmsv_depthwise_conv_forward(const DepthwiseConv*);
int64_t mmmsv_depthwise_conv_scratch(const DepthwiseConv*);

}  // extern "C"
