"""The scan's Triton kernels; :mod:`.scan` puts them together, and launches them.

A program walks a span of one sequence, tile by tile, for a block of channels: 32 to a warp, so that a thread holds all
tokens of a tile for one channel. A scan over a tile then needs no other thread, and runs the recurrence as it is
written.

From tile to tile the states are kept in memory, a row of channels for each n: registers do not depend on N, and the
loop over n is inside that over the tiles, so that u and the step are made once for all n.
"""

import triton
import triton.language as tl

from .tiles import (
    LOG2_E,
    RANKS,
    block_of,
    locate,
    make_decay,
    make_step,
    point_row,
    program,
    read,
    read_number,
    read_weight,
    scan_tile,
    show,
    slope,
    write,
)


@triton.jit
def summarise(
    inputs,
    signal,
    projection,
    carry,
    total,
    sizes,
    N: tl.constexpr,
    R: tl.constexpr,
    ROUTES: tl.constexpr,
    PER_SEQUENCE: tl.constexpr,
    SOFTPLUS: tl.constexpr,
    WIDE: tl.constexpr,
    CHUNK: tl.constexpr,
    TILE: tl.constexpr,
    BLOCK_D: tl.constexpr,
    REVERSE: tl.constexpr,
):
    """Find what each span makes of a state of 0: ``carry``, ``(batch, spans, N, sequences * D)``, zero at first.

    The state is h_t = decay_t h_{t-1} + step_t B_t u_t or, with REVERSE, w_t = decay_t w_{t+1} + decay_t C_t dy_t.
    Writes the sum of a span's steps, ``(batch, spans, sequences * D)``, to ``total``.
    """
    dtype: tl.constexpr = carry.dtype.element_ty
    sizes = show(sizes)
    batch, lanes, span, begin, end = program(sizes, CHUNK, BLOCK_D)
    real = lanes[1] < sizes.channels
    steps = tl.zeros((BLOCK_D,), dtype)
    tiles = tl.cdiv(end - begin, TILE)
    i = 0
    while i < tiles:
        start = begin + (tiles - 1 - i if REVERSE else i) * TILE
        tile = locate(sizes, lanes, start, end, ROUTES, PER_SEQUENCE, WIDE, TILE)
        value = read(signal, batch, tile, lanes[1], sizes.channels, dtype)
        step = make_step(inputs, sizes, batch, lanes, tile, R, SOFTPLUS)
        for n in range(N):
            decay, _ = make_decay(inputs, n, sizes, lanes, step)
            drive = (decay if REVERSE else step) * value
            drive *= read_number(projection, batch, tile, n, dtype)
            at = point_row(carry, span * N + n, sizes, lanes)
            _, _, h = scan_tile(decay, drive, tile[2], tl.load(at, real, 0.0), REVERSE)
            tl.store(at, h, real)
        steps += tl.sum(step, 0)
        tl.debug_barrier()  # the next tile loads the states that this one has stored
        i += 1
    tl.store(point_row(total, span, sizes, lanes), steps, real)


@triton.jit
def carry_over(
    A, total, carry, sizes, N: tl.constexpr, TILE: tl.constexpr, BLOCK_D: tl.constexpr, REVERSE: tl.constexpr
):
    """Replace, in ``carry``, what each span makes of a state of 0 by the state that enters it.

    A span multiplies the state by exp(A_n total). One program for a batch index, a sequence, an n and some channels.
    """
    sizes = show(sizes)
    index, channels = block_of(sizes, BLOCK_D)
    n, index = index % N, index // N
    batch = (index // sizes.sequences).to(tl.int64)
    sequence = index % sizes.sequences
    A_n = read_weight(A, n, sizes, (sequence, channels)) * LOG2_E
    h = tl.zeros((BLOCK_D,), A_n.dtype)
    tiles = tl.cdiv(sizes.spans, TILE)
    i = 0
    while i < tiles:
        spans = (tiles - 1 - i if REVERSE else i) * TILE + tl.arange(0, TILE)
        mask = (spans < sizes.spans)[:, None] & (channels < sizes.channels)[None, :]
        rows, lanes = (batch * sizes.spans + spans)[:, None], (sequence, channels[None, :])
        at = point_row(carry, rows * N + n, sizes, lanes)
        steps = tl.load(point_row(total, rows, sizes, lanes), mask, 0.0)
        _, before, h = scan_tile(tl.exp2(steps * A_n[None, :]), tl.load(at, mask, 0.0), spans < sizes.spans, h, REVERSE)
        tl.store(at, before, mask)
        i += 1


@triton.jit
def scan_forward(
    inputs,
    y,
    states,
    carry,
    sizes,
    N: tl.constexpr,
    R: tl.constexpr,
    ROUTES: tl.constexpr,
    PER_SEQUENCE: tl.constexpr,
    SOFTPLUS: tl.constexpr,
    WIDE: tl.constexpr,
    CHUNK: tl.constexpr,
    TILE: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    """Walk each span from its state in ``carry``, ``(batch, spans, N, sequences * D)``, which is overwritten.

    Writes y and, for the start of each chunk, ``states`` ``(batch, chunks, N, sequences * D)``.
    """
    dtype: tl.constexpr = carry.dtype.element_ty
    sizes = show(sizes)
    batch, lanes, span, begin, end = program(sizes, CHUNK, BLOCK_D)
    channels = lanes[1]
    real = channels < sizes.channels
    start = begin
    while start < end:
        tile = locate(sizes, lanes, start, end, ROUTES, PER_SEQUENCE, WIDE, TILE)
        u = read(inputs.u, batch, tile, channels, sizes.channels, dtype)
        step = make_step(inputs, sizes, batch, lanes, tile, R, SOFTPLUS)
        sum_ = tl.zeros((TILE, BLOCK_D), dtype)
        if inputs.skip is not None:
            sum_ += u * read_weight(inputs.skip, 0, sizes, lanes)[None, :]
        for n in range(N):
            at = point_row(carry, span * N + n, sizes, lanes)
            h = tl.load(at, real, 0.0)
            if start % CHUNK == 0:
                chunk = batch * sizes.chunks + start // CHUNK
                tl.store(point_row(states, chunk * N + n, sizes, lanes), h, real)
            decay, _ = make_decay(inputs, n, sizes, lanes, step)
            drive = step * u * read_number(inputs.B, batch, tile, n, dtype)
            h, _, last = scan_tile(decay, drive, tile[2], h, False)
            tl.store(at, last, real)
            sum_ += h * read_number(inputs.C, batch, tile, n, dtype)
        write(y, batch, tile, channels, sizes.channels, sum_)
        tl.debug_barrier()  # the next tile loads the states that this one has stored
        start += TILE


@triton.jit
def _tile_starts(
    inputs,
    states,
    starts,
    sizes,
    batch,
    lanes,
    span,
    chunk,
    count,
    end,
    N: tl.constexpr,
    R: tl.constexpr,
    ROUTES: tl.constexpr,
    PER_SEQUENCE: tl.constexpr,
    SOFTPLUS: tl.constexpr,
    WIDE: tl.constexpr,
    CHUNK: tl.constexpr,
    TILE: tl.constexpr,
):
    """Write to ``starts`` the state before a chunk, from ``states``, and those after its first tiles."""
    dtype: tl.constexpr = starts.dtype.element_ty
    TILES: tl.constexpr = CHUNK // TILE
    real = lanes[1] < sizes.channels
    for n in range(N):
        h = tl.load(point_row(states, (batch * sizes.chunks + chunk) * N + n, sizes, lanes), real, 0.0)
        tl.store(point_row(starts, span * TILES * N + n, sizes, lanes), h, real)
    tl.debug_barrier()
    k = 0
    while k < count:
        tile = locate(sizes, lanes, chunk * CHUNK + k * TILE, end, ROUTES, PER_SEQUENCE, WIDE, TILE)
        u = read(inputs.u, batch, tile, lanes[1], sizes.channels, dtype)
        step = make_step(inputs, sizes, batch, lanes, tile, R, SOFTPLUS)
        for n in range(N):
            decay, _ = make_decay(inputs, n, sizes, lanes, step)
            drive = step * u * read_number(inputs.B, batch, tile, n, dtype)
            row = (span * TILES + k) * N + n
            h = tl.load(point_row(starts, row, sizes, lanes), real, 0.0)
            _, _, h = scan_tile(decay, drive, tile[2], h, False)
            tl.store(point_row(starts, row + N, sizes, lanes), h, real)
        tl.debug_barrier()
        k += 1


@triton.jit
def scan_backward(
    inputs,
    dy,
    gradients,
    states,
    carry,
    starts,
    sizes,
    N: tl.constexpr,
    R: tl.constexpr,
    ROUTES: tl.constexpr,
    PER_SEQUENCE: tl.constexpr,
    SOFTPLUS: tl.constexpr,
    WIDE: tl.constexpr,
    CHUNK: tl.constexpr,
    TILE: tl.constexpr,
    BLOCK_D: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """Walk each span backwards from what is wanted of its last token's state, ``carry``, which is overwritten.

    With g_t = dL/dh_t = C_t dy_t + w_{t+1} and w_t = decay_t g_t, w_t h_{t-1} is the gradient of the exponent step A.
    The states before a chunk's tiles, ``starts`` ``(batch, spans, CHUNK / TILE, N, sequences * D)``, are made from
    that before the chunk.
    """
    TILES: tl.constexpr = CHUNK // TILE
    dtype: tl.constexpr = carry.dtype.element_ty
    sizes = show(sizes)
    batch, lanes, span, begin, end = program(sizes, CHUNK, BLOCK_D)
    channels = lanes[1]
    real = channels < sizes.channels
    blocks = tl.cdiv(sizes.channels, BLOCK_D)
    part = batch * blocks + tl.program_id(0) % blocks
    dskip = tl.zeros((BLOCK_D,), dtype)
    dbias = tl.zeros((BLOCK_D,), dtype)
    i = tl.cdiv(end - begin, TILE) - 1
    while i >= 0:
        start = begin + i * TILE
        if (i % TILES == TILES - 1) | (start + TILE >= end):
            _tile_starts(
                inputs,
                states,
                starts,
                sizes,
                batch,
                lanes,
                span,
                start // CHUNK,
                i % TILES,
                end,
                N,
                R,
                ROUTES,
                PER_SEQUENCE,
                SOFTPLUS,
                WIDE,
                CHUNK,
                TILE,
            )
        tile = locate(sizes, lanes, start, end, ROUTES, PER_SEQUENCE, WIDE, TILE)
        u = read(inputs.u, batch, tile, channels, sizes.channels, dtype)
        dy_ = tl.where(tile[2][:, None], read(dy, batch, tile, channels, sizes.channels, dtype), 0.0)
        step = make_step(inputs, sizes, batch, lanes, tile, R, SOFTPLUS)
        du = tl.zeros((TILE, BLOCK_D), dtype)  # of step u at first: the sum over n of g B
        ddelta = tl.zeros((TILE, BLOCK_D), dtype)  # of the step at first, but for what goes through step u
        for n in range(N):
            column = n + tl.arange(0, 1)
            decay, A = make_decay(inputs, n, sizes, lanes, step)
            B = read_number(inputs.B, batch, tile, n, dtype)
            h = tl.load(point_row(starts, (span * TILES + i % TILES) * N + n, sizes, lanes), real, 0.0)
            h, h_before, _ = scan_tile(decay, step * u * B, tile[2], h, False)
            write(gradients.C, part, tile, column, N, tl.sum(h * dy_, 1, keep_dims=True))
            gradient = read_number(inputs.C, batch, tile, n, dtype) * dy_
            at = point_row(carry, span * N + n, sizes, lanes)
            w, w_behind, first = scan_tile(decay, decay * gradient, tile[2], tl.load(at, real, 0.0), True)
            tl.store(at, first, real)
            gradient += w_behind
            write(gradients.B, part, tile, column, N, tl.sum(gradient * step * u, 1, keep_dims=True))
            du += gradient * B
            w = tl.where(tile[2][:, None], w * h_before, 0.0)
            at = point_row(gradients.A, span * N + n, sizes, lanes)
            tl.store(at, tl.load(at, real, 0.0) + tl.sum(w * step, 0), real)
            ddelta += w * A[None, :]
        ddelta += du * u
        if SOFTPLUS:
            ddelta *= slope(step)
        ddelta = tl.where(tile[2][:, None], ddelta, 0.0)
        du *= step
        if inputs.skip is not None:
            du += dy_ * read_weight(inputs.skip, 0, sizes, lanes)[None, :]
            dskip += tl.sum(dy_ * u, 0)
        write(gradients.u, batch, tile, channels, sizes.channels, du)
        dbias += tl.sum(ddelta, 0)
        if inputs.W_dt is None:
            write(gradients.delta, batch, tile, channels, sizes.channels, ddelta)
        else:
            for r in range(R):
                dt = read_number(inputs.delta, batch, tile, r, dtype)
                at = point_row(gradients.W_dt, span * R + r, sizes, lanes)
                tl.store(at, tl.load(at, real, 0.0) + tl.sum(dt * ddelta, 0), real)
            for r in range(0, R, RANKS):
                ranks = r + tl.arange(0, RANKS)
                W_dt = read_weight(inputs.W_dt, tl.minimum(ranks, R - 1)[:, None], sizes, (lanes[0], channels[None, :]))
                ddt = tl.dot(ddelta, tl.trans(W_dt), input_precision=PRECISION, out_dtype=dtype)
                write(gradients.delta, part, tile, ranks, R, ddt)
        tl.debug_barrier()  # the next tile loads what this one has stored
        i -= 1
    tl.store(point_row(gradients.bias, span, sizes, lanes), dbias, real)
    tl.store(point_row(gradients.skip, span, sizes, lanes), dskip, real)
