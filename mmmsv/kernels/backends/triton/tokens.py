"""Tokens and channels in the scan's Triton kernels: where they lie, reading and writing them, and the step.

A program walks the routes of one sequence, or a span of one route, for a block of channels. A thread holds some
neighbouring channels, and takes the tokens one after the other: the place of a token on the map, its B and its C are
numbers that the threads of a warp share. The tokens of a tile are written out one after the other, so that what they
read comes in together.

With N = 1 the state stays in registers. With more, it goes through memory from tile to tile, a row of channels for each
n: the loop over n lies inside that over the tiles, so that u and the step are read once for all n, and registers do not
depend on N.
"""

from typing import NamedTuple

import triton
import triton.language as tl

# Integers that all kernels take, and are not compiled anew for.
SIZES = ("height", "height_inverse", "height_shift", "width", "sequences", "channels", "sets", "spans", "span")
LOG2_E = tl.constexpr(1.4426950408889634)


def strides_of(*names: str) -> tuple[str, ...]:
    """Name the strides of the :class:`Map` of each of some tensors."""
    return tuple(f"{name}_{axis}" for name in names for axis in ("batch", "route", "token"))


class Map(NamedTuple):
    """A tensor ``(batch, routes, tokens of the map, columns)``, columns innermost: begin and strides."""

    pointer: object
    batch: object
    route: object
    token: object


class Divisor(NamedTuple):
    """A number that a program divides by: itself, ceil(2^(31 + shift) / number) in 32 bits, and shift."""

    number: object
    inverse: object
    shift: object


def divisor(number: int) -> tuple[int, int, int]:
    """Return the fields of the :class:`Divisor`, for dividing what is below 2^31 by ``number``."""
    shift = max(number - 1, 0).bit_length()
    inverse = -(-(1 << 31 + shift) // max(number, 1))
    return number, inverse - (inverse >> 31 << 32), shift  # as a signed integer of 32 bits


@triton.jit
def divide(n, divisor):
    """Divide an unsigned n below 2^31: the product with an inverse takes 3 instructions, a division 10 and more."""
    return tl.umulhi(n * 2, divisor.inverse.to(tl.uint32, bitcast=True)) >> divisor.shift.to(tl.uint32)


class Sizes(NamedTuple):
    """Sizes that all kernels share."""

    height: Divisor  # of the map
    width: object
    sequences: object
    channels: object  # of a sequence
    sets: object  # of weights: one, or one for each sequence
    spans: object  # that a route is cut into, where programs do not walk whole sequences
    span: object  # tokens of each


class Block(NamedTuple):
    """What a program computes: some channels, of a sequence or of a span of one of its routes."""

    batch: object
    sequence: object
    channels: object  # [BLOCK_D]
    real: object  # [BLOCK_D], whether they are below the number of channels
    part: object  # index of the block of channels, among all of the batch
    row: object  # index of the span, among all of the batch
    route: object  # the first
    routes: object  # how many
    begin: object  # the first token of each
    end: object


@triton.jit
def find_block(sizes, ROUTES: tl.constexpr, SPLIT: tl.constexpr, BLOCK_D: tl.constexpr):
    """Find what this program computes: all ROUTES of a sequence or, where they are SPLIT, a span of one."""
    blocks = tl.cdiv(sizes.channels, BLOCK_D)
    index = tl.program_id(0)
    block, index = index % blocks, index // blocks
    channels = block * BLOCK_D + tl.arange(0, BLOCK_D)
    tokens = sizes.height.number * sizes.width
    if SPLIT:
        spans = ROUTES * sizes.spans
        span, index = index % spans, index // spans
        route, routes = span // sizes.spans, 1
        begin = span % sizes.spans * sizes.span
        end = tl.minimum(begin + sizes.span, tokens)
    else:
        spans, span, route, routes, begin, end = 1, 0, 0, ROUTES, 0, tokens
    sequence, batch = index % sizes.sequences, (index // sizes.sequences).to(tl.int64)
    return Block(
        batch,
        sequence,
        channels,
        channels < sizes.channels,
        batch * blocks + block,
        batch * spans + span,
        sequence * ROUTES + route,
        routes,
        begin,
        end,
    )


@triton.jit
def bit(mask: tl.constexpr, route):
    """Return bit ``route`` of a mask; of -1, True."""
    if mask == -1:
        return True
    return ((mask >> route) & 1) != 0


@triton.jit
def locate(sizes, route, token, COLUMN_MAJOR: tl.constexpr, REVERSED: tl.constexpr, WIDE: tl.constexpr):
    """Return the place on the map of a token of a route.

    COLUMN_MAJOR and REVERSED have a bit for each route, or are 0 or -1 where all routes agree; WIDE says whether
    offsets need 64 bits.
    """
    place = token
    if REVERSED != 0:
        place = tl.where(bit(REVERSED, route), sizes.height.number * sizes.width - 1 - place, place)
    if COLUMN_MAJOR != 0:
        column = divide(place.to(tl.uint32), sizes.height).to(tl.int32)
        across = (place - column * sizes.height.number) * sizes.width + column
        place = tl.where(bit(COLUMN_MAJOR, route), across, place)
    return place.to(tl.int64) if WIDE else place


@triton.jit
def of_batch(tensor, batch, VECTOR: tl.constexpr):
    """Return the part of a :class:`Map` for a batch index; begin and strides are multiples of VECTOR."""
    return Map(tensor.pointer + tl.multiple_of(batch * tensor.batch, VECTOR), tensor.batch, tensor.route, tensor.token)


@triton.jit
def of_route(tensor, route, WIDE: tl.constexpr, VECTOR: tl.constexpr):
    """Return the part of a :class:`Map` for a route."""
    offset = (route.to(tl.int64) if WIDE else route) * tensor.route
    return Map(tensor.pointer + tl.multiple_of(offset, VECTOR), tensor.batch, tensor.route, tensor.token)


@triton.jit
def at(tensor, place, VECTOR: tl.constexpr):
    """Point to a token's columns."""
    return tensor.pointer + tl.multiple_of(place * tensor.token, VECTOR)


@triton.jit
def read_channels(tensor, place, block, VECTOR: tl.constexpr, FULL: tl.constexpr):
    """Read the program's channels of a token, 0 after the last."""
    pointer = at(tensor, place, VECTOR)
    if FULL:
        values = tl.load(pointer)
    else:
        values = tl.load(pointer, block.real, 0.0)
    return values


@triton.jit
def read_like(tensor, places, block, VECTOR: tl.constexpr, FULL: tl.constexpr, TILE: tl.constexpr):
    """Read the program's channels of the TILE tokens, as they lie in memory."""
    values = ()
    for k in tl.static_range(TILE):
        values = values + (read_channels(tensor, places[k], block, VECTOR, FULL),)
    return values


@triton.jit
def optional_of_batch(pointer, batch_stride, route, token, block, VECTOR: tl.constexpr):
    """Return the program's channels in its batch index as a :class:`Map`; None where there is no tensor."""
    if pointer is None:
        tensor = None
    else:
        tensor = of_batch(Map(pointer + block.channels, batch_stride, route, token), block.batch, VECTOR)
    return tensor


@triton.jit
def read_gate(
    z, route, places, block, WIDE: tl.constexpr, VECTOR: tl.constexpr, FULL: tl.constexpr, TILE: tl.constexpr
):
    """Read the gate of the TILE tokens of a route, as it lies in memory; nothing where there is none."""
    values = ()
    if z is not None:
        values = read_like(of_route(z, route, WIDE, VECTOR), places, block, VECTOR, FULL, TILE)
    return values


@triton.jit
def read_projection(tensor, places, n, TILE: tl.constexpr):
    """Read number n of B or C of the TILE tokens."""
    values = ()
    for k in tl.static_range(TILE):
        values = values + (tl.load(at(tensor, places[k], 1) + n),)
    return values


@triton.jit
def write_channels(tensor, place, block, values, inside, VECTOR: tl.constexpr):
    """Write the program's channels of a token, where ``inside``."""
    pointer = at(tensor, place, VECTOR)
    tl.store(pointer, values.to(pointer.dtype.element_ty), block.real & inside)


@triton.jit
def read_weight(weight, n, sizes, block, VECTOR: tl.constexpr):
    """Read the program's channels of row n of a weight ``(*, S * D)``; 0 where there is none."""
    if weight is None:
        return tl.zeros(block.channels.shape, tl.float32)
    else:  # Triton compiles what comes after a return, too
        start = tl.multiple_of((n * sizes.sets + block.sequence % sizes.sets) * sizes.channels, VECTOR)
        return tl.load(weight + start + block.channels, block.real, 0.0)


@triton.jit
def row_of(tensor, index, sizes, block, VECTOR: tl.constexpr):
    """Point to the program's channels in a row of ``(rows, sequences * D)``."""
    start = tl.multiple_of((index * sizes.sequences + block.sequence) * sizes.channels, VECTOR)
    return tensor + start + block.channels


@triton.jit
def softplus(x):
    """Return log(1 + e^x), to the last digits of small values."""
    if x.dtype == tl.float64:
        # What rounding takes from 1 + e, the quotient gives back.
        e = tl.exp(-tl.abs(x))
        sum_ = 1.0 + e
        same = sum_ == 1.0
        log = tl.where(same, e, tl.log(sum_) * (e / tl.where(same, 1.0, sum_ - 1.0)))
    else:
        # log(1 + e) / e for e in 0..1, to 1.5e-7: benchmarks/polynomials.py.
        e = tl.exp2(-tl.abs(x) * LOG2_E)
        p = 0.005253457929939032 * e - 0.02958850748836994
        p = p * e + 0.07836166769266129
        p = p * e - 0.13674770295619965
        p = p * e + 0.19111430644989014
        p = p * e - 0.24844369292259216
        p = p * e + 0.33319270610809326
        p = p * e - 0.49999502301216125
        log = e * (p * e + 1.0)
    return tl.maximum(x, 0.0) + log


@triton.jit
def slope(step):
    """Return the derivative of the softplus whose value is ``step``, 1 - e^-step: fewer registers than to keep it."""
    if step.dtype == tl.float64:
        e = tl.exp(-step)
        # As in softplus: what rounding takes from e^-step, its logarithm gives back.
        same = e == 1.0
        small = tl.where(same, step, (1.0 - e) * (step / tl.where(same, 1.0, -tl.log(e))))
        return tl.where(step < 1.0, small, 1.0 - e)
    # (1 - e^-step) / step for steps in 0..1/2, to 6e-8: benchmarks/polynomials.py.
    p = -0.0011237150756642222 * step + 0.008190003223717213
    p = p * step - 0.04163024201989174
    p = p * step + 0.16666245460510254
    p = p * step - 0.4999998211860657
    p = p * step + 1.0
    return tl.where(step < 0.5, p * step, 1.0 - tl.exp2(-step * LOG2_E))


@triton.jit
def load_tile(
    u,
    delta,
    sizes,
    block,
    route,
    start,
    COLUMN_MAJOR: tl.constexpr,
    REVERSED: tl.constexpr,
    WIDE: tl.constexpr,
    VECTOR: tl.constexpr,
    FULL: tl.constexpr,
    TILE: tl.constexpr,
):
    """Return places, u and delta of TILE tokens from ``start`` on, as they lie in memory, the last one at the end."""
    places = ()
    for k in tl.static_range(TILE):
        places = places + (locate(sizes, route, tl.minimum(start + k, block.end - 1), COLUMN_MAJOR, REVERSED, WIDE),)
    us, deltas = read_like(u, places, block, VECTOR, FULL, TILE), read_like(delta, places, block, VECTOR, FULL, TILE)
    return places, us, deltas


@triton.jit
def steps_of(deltas, bias, block, start, SOFTPLUS: tl.constexpr, TILE: tl.constexpr, dtype: tl.constexpr):
    """Return the steps of the TILE tokens from ``start`` on; after the end, 0."""
    steps = ()
    for k in tl.static_range(TILE):
        step = deltas[k].to(dtype) + bias
        if SOFTPLUS:
            step = softplus(step)
        steps = steps + (tl.where(start + k < block.end, step, 0.0),)
    return steps


@triton.jit
def read_tile(
    u,
    delta,
    bias,
    sizes,
    block,
    route,
    start,
    COLUMN_MAJOR: tl.constexpr,
    REVERSED: tl.constexpr,
    SOFTPLUS: tl.constexpr,
    WIDE: tl.constexpr,
    VECTOR: tl.constexpr,
    FULL: tl.constexpr,
    TILE: tl.constexpr,
    dtype: tl.constexpr,
):
    """Return places, u and steps of the TILE tokens from ``start`` on; after the end, the last token with step 0."""
    places, loaded, deltas = load_tile(
        u, delta, sizes, block, route, start, COLUMN_MAJOR, REVERSED, WIDE, VECTOR, FULL, TILE
    )
    us = ()
    for k in tl.static_range(TILE):
        us = us + (loaded[k].to(dtype),)
    return places, us, steps_of(deltas, bias, block, start, SOFTPLUS, TILE, dtype)
