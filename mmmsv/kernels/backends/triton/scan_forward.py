"""The scan's forward kernel."""

import triton
import triton.language as tl

from .activations import activate
from .tokens import (
    LOG2_E,
    SIZES,
    Divisor,
    Map,
    Sizes,
    find_block,
    load_tile,
    of_batch,
    of_route,
    optional_of_batch,
    read_gate,
    read_projection,
    read_weight,
    row_of,
    steps_of,
    strides_of,
    write_channels,
)


@triton.jit(do_not_specialize=[*strides_of("u", "delta", "z", "BC", "y"), *SIZES])
def scan_forward(
    u,
    delta,
    z,
    B,
    C,
    bias,
    A,
    skip,
    y,
    states,
    carry,
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
    y_batch,
    y_route,
    y_token,
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
    WIDE: tl.constexpr,
    VECTOR: tl.constexpr,
    FULL: tl.constexpr,
    CHUNK: tl.constexpr,
    TILE: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    """Compute y and, unless ``states`` is None, the states before each chunk, ``(batch, chunks, N, sequences * D)``.

    Where routes are SPLIT, spans begin with the state in ``carry``, ``(batch, spans, N, sequences * D)``; else
    sequences begin with 0. Where N is more than 1 or KEEP_END, ``carry`` has the state after each span afterwards.

    Unless ``z`` is None, y is multiplied by SiLU(z).
    """
    dtype: tl.constexpr = A.dtype.element_ty
    channels = channels // VECTOR * VECTOR  # says that it is a multiple
    sizes = Sizes(Divisor(height, height_inverse, height_shift), width, sequences, channels, sets, spans, span)
    block = find_block(sizes, ROUTES, SPLIT, BLOCK_D)
    u = of_batch(Map(u + block.channels, u_batch, u_route, u_token), block.batch, VECTOR)
    delta = of_batch(Map(delta + block.channels, delta_batch, delta_route, delta_token), block.batch, VECTOR)
    z = optional_of_batch(z, z_batch, z_route, z_token, block, VECTOR)
    B = of_batch(Map(B, BC_batch, BC_route, BC_token), block.batch, 1)
    C = of_batch(Map(C, BC_batch, BC_route, BC_token), block.batch, 1)
    y = of_batch(Map(y + block.channels, y_batch, y_route, y_token), block.batch, VECTOR)
    bias_ = read_weight(bias, 0, sizes, block, VECTOR)
    skip_ = read_weight(skip, 0, sizes, block, VECTOR)
    rate = read_weight(A, 0, sizes, block, VECTOR) * LOG2_E
    chunks = tl.cdiv(height * width, CHUNK)
    h = tl.zeros((BLOCK_D,), dtype)
    if SPLIT:
        h = tl.load(row_of(carry, block.row * N, sizes, block, VECTOR), block.real, 0.0)
    for r in range(block.routes):
        route = block.route + r
        u_, delta_ = of_route(u, route, WIDE, VECTOR), of_route(delta, route, WIDE, VECTOR)
        B_, C_, y_ = of_route(B, route, WIDE, 1), of_route(C, route, WIDE, 1), of_route(y, route, WIDE, VECTOR)
        chunk = (block.batch * ROUTES + route % ROUTES) * chunks
        # What a tile reads comes in while the one before is computed.
        places, us, deltas = load_tile(
            u_, delta_, sizes, block, route, block.begin, COLUMN_MAJOR, REVERSED, WIDE, VECTOR, FULL, TILE
        )
        Bs, Cs = read_projection(B_, places, 0, TILE), read_projection(C_, places, 0, TILE)
        for start in range(block.begin, block.end, TILE):
            next_places, next_us, next_deltas = load_tile(
                u_, delta_, sizes, block, route, start + TILE, COLUMN_MAJOR, REVERSED, WIDE, VECTOR, FULL, TILE
            )
            next_Bs, next_Cs = read_projection(B_, next_places, 0, TILE), read_projection(C_, next_places, 0, TILE)
            zs = read_gate(z, route, places, block, WIDE, VECTOR, FULL, TILE)
            steps = steps_of(deltas, bias_, block, start, SOFTPLUS, TILE, dtype)
            ys = ()
            for k in tl.static_range(TILE):
                ys = ys + (skip_ * us[k].to(dtype),)
            for n in range(N):
                row = row_of(carry, block.row * N + n, sizes, block, VECTOR)
                if N > 1:
                    rate = read_weight(A, n, sizes, block, VECTOR) * LOG2_E
                    h = tl.load(row, block.real & (SPLIT | (r > 0) | (start > block.begin)), 0.0)
                    if n > 0:
                        Bs, Cs = read_projection(B_, places, n, TILE), read_projection(C_, places, n, TILE)
                if states is not None:
                    if start % CHUNK == 0:
                        tl.store(row_of(states, (chunk + start // CHUNK) * N + n, sizes, block, VECTOR), h, block.real)
                sums = ()
                for k in tl.static_range(TILE):
                    h = tl.exp2(steps[k] * rate) * h + (steps[k] * Bs[k].to(dtype)) * us[k].to(dtype)
                    sums = sums + (ys[k] + Cs[k].to(dtype) * h,)
                ys = sums
                if N > 1:
                    tl.store(row, h, block.real)
            for k in tl.static_range(TILE):
                y_k = ys[k]
                if z is not None:
                    y_k *= activate(zs[k].to(dtype), "silu")
                write_channels(y_, places[k], block, y_k, start + k < block.end, VECTOR)
            places, us, deltas, Bs, Cs = next_places, next_us, next_deltas, next_Bs, next_Cs
    if N == 1 and KEEP_END:
        tl.store(row_of(carry, block.row, sizes, block, VECTOR), h, block.real)
