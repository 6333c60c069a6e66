// Merging two resolutions: what the library is asked for.
#pragma once

#include "tasks.h"

extern "C" {

struct Merge {
    int64_t dtype;  // of the maps: a place in DTYPES of library.py
    int64_t batch, height, width, half_height, half_width, channels, routes;
    int64_t norm_first;
    int64_t parts;  // that the rows of a map are cut into; backward, each sums its own gradients of the weights
    int64_t threads;
    double eps;
    Map full, half, y;           // y: forward, the result; backward, its gradient
    int64_t half_route, dhalf_route;  // strides from route to route
    const void *weight, *bias;   // (D), in the dtype of the sums, as all below
    void* moments;               // (batch, tokens that go through the norm, 2), those of the full map first
    void* half_sum;              // with norm_first: (batch, half_height, half_width, D), of the normalised routes
    // Backward only.
    Map dfull, dhalf;
    void* weight_parts;          // (parts, 2, D), zeros; of the gradients of weight and bias
    void* scratch;               // for each thread, D numbers
};

void mmmsv_merge_forward(const Merge*);
int64_t mmmsv_merge_scratch(const Merge*);

}  // extern "C"
