"""Kernels for routes that are cut into spans: what a span makes of a state, and which state enters each."""

import triton
import triton.language as tl

from .activations import activate
from .tokens import (
    LOG2_E,
    SIZES,
    Divisor,
    Map,
    Sizes,
    at,
    find_block,
    of_batch,
    of_route,
    optional_of_batch,
    read_gate,
    read_tile,
    read_weight,
    row_of,
    strides_of,
)


@triton.jit(do_not_specialize=[*strides_of("signal", "delta", "z", "projection"), *SIZES])
def summarise(
    signal,
    delta,
    z,
    projection,
    bias,
    A,
    ends,
    totals,
    signal_batch,
    signal_route,
    signal_token,
    delta_batch,
    delta_route,
    delta_token,
    z_batch,
    z_route,
    z_token,
    projection_batch,
    projection_route,
    projection_token,
    height,
    height_inverse,
    height_shift,
    width,
    sequences,
    channels,
    sets,
    spans,
    span,
    N: tl.constexpr,
    ROUTES: tl.constexpr,
    COLUMN_MAJOR: tl.constexpr,
    REVERSED: tl.constexpr,
    SOFTPLUS: tl.constexpr,
    WIDE: tl.constexpr,
    VECTOR: tl.constexpr,
    FULL: tl.constexpr,
    TILE: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BACKWARD: tl.constexpr,
):
    """Find what each span makes of a state of 0: ``ends``, ``(batch, spans, N, sequences * D)``.

    The state is h_t = decay_t h_{t-1} + step_t B_t u_t or, where BACKWARD, w_t = decay_t (C_t dy_t + w_{t+1}). Unless
    ``z`` is None, the signal is multiplied by SiLU(z) first. Writes the sum of a span's steps, ``(batch, spans,
    sequences * D)``, to ``totals``.
    """
    FIRST: tl.constexpr = TILE - 1 if BACKWARD else 0
    STEP: tl.constexpr = -1 if BACKWARD else 1
    dtype: tl.constexpr = A.dtype.element_ty
    channels = channels // VECTOR * VECTOR  # says that it is a multiple
    sizes = Sizes(Divisor(height, height_inverse, height_shift), width, sequences, channels, sets, spans, span)
    block = find_block(sizes, ROUTES, True, BLOCK_D)
    signal = Map(signal + block.channels, signal_batch, signal_route, signal_token)
    signal = of_route(of_batch(signal, block.batch, VECTOR), block.route, WIDE, VECTOR)
    delta = Map(delta + block.channels, delta_batch, delta_route, delta_token)
    delta = of_route(of_batch(delta, block.batch, VECTOR), block.route, WIDE, VECTOR)
    z = optional_of_batch(z, z_batch, z_route, z_token, block, VECTOR)
    projection = Map(projection, projection_batch, projection_route, projection_token)
    projection = of_route(of_batch(projection, block.batch, 1), block.route, WIDE, 1)
    bias_ = read_weight(bias, 0, sizes, block, VECTOR)
    rate = read_weight(A, 0, sizes, block, VECTOR) * LOG2_E
    total, h = tl.zeros((BLOCK_D,), dtype), tl.zeros((BLOCK_D,), dtype)
    tiles = tl.cdiv(block.end - block.begin, TILE)
    for i in range(tiles):
        start = block.begin + (tiles - 1 - i if BACKWARD else i) * TILE
        places, values, steps = read_tile(
            signal,
            delta,
            bias_,
            sizes,
            block,
            block.route,
            start,
            COLUMN_MAJOR,
            REVERSED,
            SOFTPLUS,
            WIDE,
            VECTOR,
            FULL,
            TILE,
            dtype,
        )
        if z is not None:
            zs, gated = read_gate(z, block.route, places, block, WIDE, VECTOR, FULL, TILE), ()
            for k in tl.static_range(TILE):
                gated = gated + (values[k] * activate(zs[k].to(dtype), "silu"),)
            values = gated
        for n in range(N):
            row = row_of(ends, block.row * N + n, sizes, block, VECTOR)
            if N > 1:
                rate = read_weight(A, n, sizes, block, VECTOR) * LOG2_E
                h = tl.load(row, block.real & (i > 0), 0.0)
            for k in tl.static_range(FIRST, FIRST + STEP * TILE, STEP):
                factor = tl.load(at(projection, places[k], 1) + n).to(dtype)
                decay = tl.exp2(steps[k] * rate)
                if BACKWARD:
                    h = decay * (tl.where(start + k < block.end, factor * values[k], 0.0) + h)
                else:
                    h = decay * h + (steps[k] * factor) * values[k]
            if N > 1:
                tl.store(row, h, block.real)
        for k in tl.static_range(TILE):
            total += steps[k]
    if N == 1:
        tl.store(row_of(ends, block.row * N, sizes, block, VECTOR), h, block.real)
    tl.store(row_of(totals, block.row, sizes, block, VECTOR), total, block.real)


@triton.jit
def _join(decay_1, state_1, decay_2, state_2):
    """Join two neighbouring runs of spans, which make ``decay * h + state`` of a state h."""
    return decay_1 * decay_2, decay_2 * state_1 + state_2


@triton.jit(do_not_specialize=["rows", "size", "weights"])
def carry_over(
    A,
    totals,
    ends,
    start,
    carry,
    rows,
    size,
    weights,
    N: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BACKWARD: tl.constexpr,
):
    """Write to ``carry`` the state that enters each span; all are ``(batch, rows, N, size)``, ``totals`` without N.

    The first state is ``start``, ``(batch, N, size)``, or 0 where that is None. A span makes exp(A_n total) h + end of
    a state h. One program for a batch index, an n and some columns takes ROWS
    spans at once, then the next. A has ``weights`` columns, as many as there are or a part that all share.
    """
    blocks = tl.cdiv(size, BLOCK_D)
    index = tl.program_id(0)
    columns = index % blocks * BLOCK_D + tl.arange(0, BLOCK_D)
    n, batch = index // blocks % N, (index // blocks // N).to(tl.int64)
    real = columns < size
    A_n = tl.load(A + n * weights + columns % weights, real, 0.0) * LOG2_E
    ends += (batch * rows * N + n) * size + columns[None, :]
    carry += (batch * rows * N + n) * size + columns[None, :]
    totals += batch * rows * size + columns[None, :]
    h = tl.zeros((BLOCK_D,), A_n.dtype)
    if start is not None:
        h = tl.load(start + (batch * N + n) * size + columns, real, 0.0)
    tl.store(carry + (rows - 1 if BACKWARD else 0) * N * size, h[None, :], real[None, :])
    i = tl.arange(0, ROWS)[:, None]
    for first in range(0, rows, ROWS):
        row = (rows - 1 - first - i if BACKWARD else first + i).to(tl.int64)
        inside = (row >= 0) & (row < rows) & real[None, :]
        decay = tl.exp2(tl.load(totals + row * size, inside, 0.0) * A_n[None, :])
        state = tl.load(ends + row * N * size, inside, 0.0)
        state += tl.where(i == 0, decay * h[None, :], 0.0)
        _, state = tl.associative_scan((decay, state), 0, _join)
        h = tl.sum(tl.where(i == ROWS - 1, state, 0.0), 0)
        row += -1 if BACKWARD else 1
        tl.store(carry + row * N * size, state, (row >= 0) & (row < rows) & real[None, :])
