// The gate of a map: what the library is asked for.
#pragma once

#include "tasks.h"

extern "C" {

struct Gate {
    int64_t dtype;  // of the maps: a place in DTYPES of library.py
    int64_t batch, height, width, channels;
    int64_t parts;  // number of parts that the rows of each image are cut into
    int64_t threads;
    Map y, z, out;       // z.data may be null; out: forward, the result; backward, its gradient
    const void* weight;  // (batch, D) in the dtype of the sums, or null
    // Backward only.
    Map dy, dz;
    void* weight_parts;  // (batch, parts, D)
    void* scratch;       // of size 0
};

void mmmsv_gate_forward(const Gate*);
int64_t mmmsv_gate_scratch(const Gate*);

}  // extern "C"
