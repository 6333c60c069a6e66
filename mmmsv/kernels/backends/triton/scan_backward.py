"""The scan's backward kernel."""

import triton
import triton.language as tl

from .activations import activate
from .activations import slope as slope_of_gate
from .tokens import (
    LOG2_E,
    SIZES,
    Divisor,
    Map,
    Sizes,
    at,
    find_block,
    load_tile,
    of_batch,
    of_route,
    optional_of_batch,
    read_gate,
    read_like,
    read_projection,
    read_tile,
    read_weight,
    row_of,
    slope,
    steps_of,
    strides_of,
    write_channels,
)


@triton.jit
def _find_tile_starts(
    u,
    delta,
    B,
    bias,
    A,
    states,
    starts,
    first,
    sizes,
    block,
    route,
    chunk,
    begin,
    count,
    N: tl.constexpr,
    COLUMN_MAJOR: tl.constexpr,
    REVERSED: tl.constexpr,
    SOFTPLUS: tl.constexpr,
    WIDE: tl.constexpr,
    VECTOR: tl.constexpr,
    FULL: tl.constexpr,
    TILE: tl.constexpr,
):
    """Write to ``starts``, from row ``first`` on, the state before a chunk and after its first ``count`` tiles."""
    dtype: tl.constexpr = A.dtype.element_ty
    for n in range(N):
        h = tl.load(row_of(states, chunk * N + n, sizes, block, VECTOR), block.real, 0.0)
        tl.store(row_of(starts, first + n, sizes, block, VECTOR), h, block.real)
    for k in range(count):
        places, us, steps = read_tile(
            u,
            delta,
            bias,
            sizes,
            block,
            route,
            begin + k * TILE,
            COLUMN_MAJOR,
            REVERSED,
            SOFTPLUS,
            WIDE,
            VECTOR,
            FULL,
            TILE,
            dtype,
        )
        for n in range(N):
            rate = read_weight(A, n, sizes, block, VECTOR) * LOG2_E
            h = tl.load(row_of(starts, first + k * N + n, sizes, block, VECTOR), block.real, 0.0)
            for t in tl.static_range(TILE):
                B_n = tl.load(at(B, places[t], 1) + n).to(dtype)
                h = tl.exp2(steps[t] * rate) * h + (steps[t] * B_n) * us[t]
            tl.store(row_of(starts, first + (k + 1) * N + n, sizes, block, VECTOR), h, block.real)


@triton.jit
def _read_sums(sums, places, block, begun, VECTOR: tl.constexpr, TILE: tl.constexpr):
    """Read what the TILE tokens have been added up to, 0 where nothing has begun."""
    values = ()
    for k in tl.static_range(TILE):
        values = values + (tl.load(at(sums, places[k], VECTOR), block.real & begun, 0.0),)
    return values


@triton.jit(do_not_specialize=[*strides_of("u", "delta", "z", "BC", "dy", "du", "ddelta"), *SIZES])
def scan_backward(
    u,
    delta,
    z,
    B,
    C,
    bias,
    A,
    skip,
    dy,
    du,
    ddelta,
    du_sum,
    ddelta_sum,
    dz,
    dBC,
    dweights,
    states,
    carry,
    starts,
    u_batch,
    u_route,
    u_token,
    delta_batch,
    delta_route,
    delta_token,
    z_batch,
    z_route,
    z_token,
    BC_batch,
    BC_route,
    BC_token,
    dy_batch,
    dy_route,
    dy_token,
    du_batch,
    du_route,
    du_token,
    ddelta_batch,
    ddelta_route,
    ddelta_token,
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
    SPLIT: tl.constexpr,
    KEEP_END: tl.constexpr,
    SUMMED: tl.constexpr,
    WIDE: tl.constexpr,
    VECTOR: tl.constexpr,
    FULL: tl.constexpr,
    CHUNK: tl.constexpr,
    TILE: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    """Walk each span backwards from what is wanted of its last token's state.

    That is in ``carry``, as in :func:`scan_forward`, where routes are SPLIT, and else 0. With
    g_t = dL/dh_t = C_t dy_t + w_{t+1} and w_t = decay_t g_t, w_t h_{t-1} is the gradient of the exponent step A. Where
    N is more than 1 or KEEP_END, ``carry`` has w of each span's first token afterwards.

    Unless ``z`` is None, dy is multiplied by SiLU(z) first, and the gradient of z is written, with the strides of u's.

    Writes the gradients of u and delta: for each route or, SUMMED over the routes, by way of ``du_sum`` and
    ``ddelta_sum``. Of others it writes the part of a program: to ``dBC``, ``(batch, blocks of channels, routes, tokens,
    2 N)``, its sums over channels; to ``dweights``, ``(batch, spans, 2 + N, sequences * D)``, those over tokens, for
    bias, skip, and A.

    Where a chunk has several tiles, the states before them, ``starts`` ``(batch, spans, CHUNK / TILE + 1, N, sequences
    * D)``, are made from that before the chunk.
    """
    TILES: tl.constexpr = CHUNK // TILE
    dtype: tl.constexpr = A.dtype.element_ty
    channels = channels // VECTOR * VECTOR  # says that it is a multiple
    sizes = Sizes(Divisor(height, height_inverse, height_shift), width, sequences, channels, sets, spans, span)
    block = find_block(sizes, ROUTES, SPLIT, BLOCK_D)
    u = of_batch(Map(u + block.channels, u_batch, u_route, u_token), block.batch, VECTOR)
    delta = of_batch(Map(delta + block.channels, delta_batch, delta_route, delta_token), block.batch, VECTOR)
    z = optional_of_batch(z, z_batch, z_route, z_token, block, VECTOR)
    dz = optional_of_batch(dz, du_batch, du_route, du_token, block, VECTOR)
    B = of_batch(Map(B, BC_batch, BC_route, BC_token), block.batch, 1)
    C = of_batch(Map(C, BC_batch, BC_route, BC_token), block.batch, 1)
    dy = of_batch(Map(dy + block.channels, dy_batch, dy_route, dy_token), block.batch, VECTOR)
    du = of_batch(Map(du + block.channels, du_batch, du_route, du_token), block.batch, VECTOR)
    ddelta = of_batch(Map(ddelta + block.channels, ddelta_batch, ddelta_route, ddelta_token), block.batch, VECTOR)
    du_sum = of_batch(Map(du_sum + block.channels, du_batch, du_route, du_token), block.batch, VECTOR)
    ddelta_sum = of_batch(Map(ddelta_sum + block.channels, du_batch, du_route, du_token), block.batch, VECTOR)
    bias_ = read_weight(bias, 0, sizes, block, VECTOR)
    skip_ = read_weight(skip, 0, sizes, block, VECTOR)
    A_n = read_weight(A, 0, sizes, block, VECTOR)
    tokens = height * width
    chunks = tl.cdiv(tokens, CHUNK)
    dbias, dskip, dA = tl.zeros((BLOCK_D,), dtype), tl.zeros((BLOCK_D,), dtype), tl.zeros((BLOCK_D,), dtype)
    w = tl.zeros((BLOCK_D,), dtype)
    if SPLIT:
        w = tl.load(row_of(carry, block.row * N, sizes, block, VECTOR), block.real, 0.0)
    first = block.row * (TILES + 1) * N  # row of starts
    tiles = tl.cdiv(block.end - block.begin, TILE)
    for r in range(block.routes):
        route = block.route + block.routes - 1 - r
        u_, delta_ = of_route(u, route, WIDE, VECTOR), of_route(delta, route, WIDE, VECTOR)
        B_, C_, dy_ = of_route(B, route, WIDE, 1), of_route(C, route, WIDE, 1), of_route(dy, route, WIDE, VECTOR)
        du_, ddelta_ = of_route(du, route, WIDE, VECTOR), of_route(ddelta, route, WIDE, VECTOR)
        dBC_ = dBC + (block.part * (sequences * ROUTES) + route) * tokens * (2 * N)
        chunk = (block.batch * ROUTES + route % ROUTES) * chunks
        # What a tile reads comes in while the one before is computed.
        places, us, deltas = load_tile(
            u_,
            delta_,
            sizes,
            block,
            route,
            block.begin + (tiles - 1) * TILE,
            COLUMN_MAJOR,
            REVERSED,
            WIDE,
            VECTOR,
            FULL,
            TILE,
        )
        dys = read_like(dy_, places, block, VECTOR, FULL, TILE)
        zs = read_gate(z, route, places, block, WIDE, VECTOR, FULL, TILE)
        Bs, Cs = read_projection(B_, places, 0, TILE), read_projection(C_, places, 0, TILE)
        for i in range(tiles):
            tile = tiles - 1 - i
            start = block.begin + tile * TILE
            if TILES > 1:
                if (tile % TILES == TILES - 1) | (i == 0):
                    _find_tile_starts(
                        u_,
                        delta_,
                        B_,
                        bias_,
                        A,
                        states,
                        starts,
                        first,
                        sizes,
                        block,
                        route,
                        chunk + start // CHUNK,
                        start - tile % TILES * TILE,
                        tile % TILES,
                        N,
                        COLUMN_MAJOR,
                        REVERSED,
                        SOFTPLUS,
                        WIDE,
                        VECTOR,
                        FULL,
                        TILE,
                    )
            next_places, next_us, next_deltas = load_tile(
                u_,
                delta_,
                sizes,
                block,
                route,
                tl.maximum(start - TILE, block.begin),
                COLUMN_MAJOR,
                REVERSED,
                WIDE,
                VECTOR,
                FULL,
                TILE,
            )
            next_dys = read_like(dy_, next_places, block, VECTOR, FULL, TILE)
            next_zs = read_gate(z, route, next_places, block, WIDE, VECTOR, FULL, TILE)
            next_Bs, next_Cs = read_projection(B_, next_places, 0, TILE), read_projection(C_, next_places, 0, TILE)
            steps = steps_of(deltas, bias_, block, start, SOFTPLUS, TILE, dtype)
            inside_dys, gBs, dsteps, ys = (), (), (), ()
            for k in tl.static_range(TILE):
                dy_k = dys[k].to(dtype)
                if z is not None:
                    dy_k *= activate(zs[k].to(dtype), "silu")
                    ys = ys + (skip_ * us[k].to(dtype),)  # before the gate
                inside_dys = inside_dys + (tl.where(start + k < block.end, dy_k, 0.0),)
                gBs = gBs + (tl.zeros((BLOCK_D,), dtype),)  # the sum over n of g B
                dsteps = dsteps + (tl.zeros((BLOCK_D,), dtype),)  # of the step, but for what goes through step u
            dus_before, dsteps_before = (), ()
            if SUMMED:  # of the routes before
                dus_before = _read_sums(du_sum, places, block, r > 0, VECTOR, TILE)
                dsteps_before = _read_sums(ddelta_sum, places, block, r > 0, VECTOR, TILE)
            for n in range(N):
                row = row_of(carry, block.row * N + n, sizes, block, VECTOR)
                dA_row = row_of(dweights, block.row * (2 + N) + 2 + n, sizes, block, VECTOR)
                if N > 1:
                    A_n = read_weight(A, n, sizes, block, VECTOR)
                    # Of the last tile nothing is wanted yet, and nothing was added up.
                    begun = (r > 0) | (i > 0)
                    w = tl.load(row, block.real & (SPLIT | begun), 0.0)
                    dA = tl.load(dA_row, block.real & begun, 0.0)
                    if n > 0:
                        Bs, Cs = read_projection(B_, places, n, TILE), read_projection(C_, places, n, TILE)
                rate = A_n * LOG2_E
                if TILES > 1:
                    h = tl.load(row_of(starts, first + tile % TILES * N + n, sizes, block, VECTOR), block.real, 0.0)
                else:
                    h = tl.load(row_of(states, (chunk + start // CHUNK) * N + n, sizes, block, VECTOR), block.real, 0.0)
                befores, decays, new_ys = (), (), ()
                for k in tl.static_range(TILE):
                    decay = tl.exp2(steps[k] * rate)
                    befores, decays = befores + (h,), decays + (decay,)
                    h = decay * h + (steps[k] * Bs[k].to(dtype)) * us[k].to(dtype)
                    if z is not None:
                        new_ys = new_ys + (ys[k] + Cs[k].to(dtype) * h,)
                ys = new_ys
                new_gBs, new_dsteps = (), ()
                for k in tl.static_range(TILE - 1, -1, -1):
                    inside = start + k < block.end
                    sums = dBC_ + places[k] * (2 * N) + n
                    tl.store(sums + N, tl.sum(h * inside_dys[k], 0), inside)
                    g = Cs[k].to(dtype) * inside_dys[k] + w
                    tl.store(sums, tl.sum((g * steps[k]) * us[k].to(dtype), 0), inside)
                    w = decays[k] * g
                    h = befores[k]
                    wh = w * h
                    dA += wh * steps[k]
                    new_gBs = (gBs[k] + g * Bs[k].to(dtype),) + new_gBs
                    new_dsteps = (dsteps[k] + wh * A_n,) + new_dsteps
                gBs, dsteps = new_gBs, new_dsteps
                if N > 1:
                    tl.store(row, w, block.real)
                    tl.store(dA_row, dA, block.real)
            for k in tl.static_range(TILE):
                inside = start + k < block.end
                dstep = dsteps[k] + gBs[k] * us[k].to(dtype)
                if SOFTPLUS:
                    dstep *= slope(steps[k])
                dstep = tl.where(inside, dstep, 0.0)
                dbias += dstep
                dskip += inside_dys[k] * us[k].to(dtype)
                du_k = gBs[k] * steps[k] + skip_ * inside_dys[k]
                if SUMMED:
                    last = r == block.routes - 1
                    dstep += dsteps_before[k]
                    du_k += dus_before[k]
                    write_channels(ddelta_sum, places[k], block, dstep, inside & (not last), VECTOR)
                    write_channels(du_sum, places[k], block, du_k, inside & (not last), VECTOR)
                    inside &= last
                write_channels(ddelta_, places[k], block, dstep, inside, VECTOR)
                write_channels(du_, places[k], block, du_k, inside, VECTOR)
                if z is not None:
                    dz_k = dys[k].to(dtype) * ys[k] * slope_of_gate(zs[k].to(dtype), "silu")
                    write_channels(of_route(dz, route, WIDE, VECTOR), places[k], block, dz_k, inside, VECTOR)
            places, us, deltas, dys, Bs, Cs = next_places, next_us, next_deltas, next_dys, next_Bs, next_Cs
            zs = next_zs
    tl.store(row_of(dweights, block.row * (2 + N) + 0, sizes, block, VECTOR), dbias, block.real)
    tl.store(row_of(dweights, block.row * (2 + N) + 1, sizes, block, VECTOR), dskip, block.real)
    if N == 1:
        tl.store(row_of(dweights, block.row * (2 + N) + 2, sizes, block, VECTOR), dA, block.real)
        if KEEP_END:
            tl.store(row_of(carry, block.row, sizes, block, VECTOR), w, block.real)
