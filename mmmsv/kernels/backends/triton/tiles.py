"""Tiles of a sequence in the Triton kernels: where their tokens lie, reading them, the step, and the scan over one."""

from typing import NamedTuple

import triton
import triton.language as tl

RANKS = tl.constexpr(4)  # columns of the low-rank step in one tl.dot: more do not fit in the registers
LOG2_E = tl.constexpr(1.4426950408889634)


# Triton looks at the integers in a tuple. It compiles again for a 1, and of a multiple of 16 it concludes that a thread
# can read neighbouring channels at once, and then hold fewer tokens. 2 n + 3 is never either.
def hidden(n: int) -> int:
    """Encode an integer so that Triton does not compile for its value."""
    return 2 * n + 3


@triton.jit
def shown(n):
    return (n >> 1) - 1


class PerToken(NamedTuple):
    """A tensor ``(batch, routes, tokens of the map, columns)``, columns innermost: begin and (hidden) strides."""

    pointer: object
    batch: object
    route: object
    token: object


class Inputs(NamedTuple):
    """What is scanned. Weights are contiguous ``(*, S * D)``, R, 1, N, 1 for the *; without W_dt delta is dense."""

    u: PerToken
    delta: PerToken
    B: PerToken
    C: PerToken
    W_dt: object
    bias: object
    A: object
    skip: object


class Gradients(NamedTuple):
    """Where the gradients go.

    Those of B, C and the low-rank step are sums over one program's channels (the batch index counts batch and blocks of
    channels); those of the weights are sums over its span, ``(batch * spans, *, sequences * D)``, and those of W_dt and
    A are added to what is there.
    """

    u: PerToken
    delta: PerToken
    B: PerToken
    C: PerToken
    W_dt: object
    bias: object
    A: object
    skip: object


class Sizes(NamedTuple):
    """Sizes that all kernels share; a launch hides them."""

    height: int
    width: int
    length: int  # tokens of a sequence: one route over the map, or several
    sequences: int
    channels: int  # of a sequence
    sets: int  # of weights: one, or one for each sequence
    spans: int  # programs along a sequence
    span: int  # chunks of each
    chunks: int  # of a sequence

    def hide(self) -> "Sizes":
        """Return the sizes as the kernels take them."""
        return Sizes(*map(hidden, self))


@triton.jit
def show(sizes):
    return Sizes(
        shown(sizes.height),
        shown(sizes.width),
        shown(sizes.length),
        shown(sizes.sequences),
        shown(sizes.channels),
        shown(sizes.sets),
        shown(sizes.spans),
        shown(sizes.span),
        shown(sizes.chunks),
    )


@triton.jit
def join(decay_1, state_1, lead_1, before_1, decay_2, state_2, lead_2, before_2):
    """Join two neighbouring runs of tokens.

    A run makes of the state h that enters it ``decay * h + state`` after its last token, and ``lead * h + before``
    before that token.
    """
    return decay_1 * decay_2, decay_2 * state_1 + state_2, decay_1 * lead_2, lead_2 * state_1 + before_2


@triton.jit
def scan_tile(decay, drive, inside, start, REVERSE: tl.constexpr):
    """Return h_t = decay_t h_{t-1} + drive_t, h_{t-1}, and the last h.

    decay and drive are ``[tokens, channels]``, start is ``[channels]``. With REVERSE t runs from the end. Where it is
    not ``inside``, drive counts as 0.
    """
    tokens: tl.constexpr = decay.shape[0]
    t = tl.arange(0, tokens)[:, None]
    first = t == (tokens - 1 if REVERSE else 0)
    last = t == (0 if REVERSE else tokens - 1)
    drive = tl.where(inside[:, None], drive, 0.0)
    state = tl.where(first, decay * start[None, :] + drive, drive)
    before = tl.where(first, start[None, :], tl.zeros_like(drive))
    lead = tl.full(decay.shape, 1.0, decay.dtype)
    _, state, _, before = tl.associative_scan((decay, state, lead, before), 0, join, reverse=REVERSE)
    return state, before, tl.sum(tl.where(last, state, 0.0), 0)


@triton.jit
def block_of(sizes, BLOCK_D: tl.constexpr):
    """Return the program's channels, and the rest of its index."""
    blocks = tl.cdiv(sizes.channels, BLOCK_D)
    index = tl.program_id(0)
    return index // blocks, index % blocks * BLOCK_D + tl.arange(0, BLOCK_D)


@triton.jit
def program(sizes, CHUNK: tl.constexpr, BLOCK_D: tl.constexpr):
    """Return a program's batch index, (sequence, channels), index of its span, and the span's first and last token."""
    index, channels = block_of(sizes, BLOCK_D)
    span, index = index % sizes.spans, index // sizes.spans
    batch = (index // sizes.sequences).to(tl.int64)
    begin = span * (sizes.span * CHUNK)
    end = tl.minimum(begin + sizes.span * CHUNK, sizes.length)
    return batch, (index % sizes.sequences, channels), batch * sizes.spans + span, begin, end


@triton.jit
def locate(
    sizes,
    lanes,
    start,
    end,
    ROUTES: tl.constexpr,
    PER_SEQUENCE: tl.constexpr,
    WIDE: tl.constexpr,
    TILE: tl.constexpr,
):
    """Return (route, place on the map, whether it is before the end) of the TILE tokens from ``start`` on.

    Tokens after the end have the place of the last token, so that they can be read, if not used.

    ROUTES are places in :data:`.routes.ROUTES`, row, col, row_rev, col_rev, of each route or of all; WIDE, whether
    offsets need 64 bits.
    """
    tokens = start + tl.arange(0, TILE)
    inside = tokens < end
    # Unsigned divisions take half the instructions.
    place = tl.minimum(tokens, end - 1).to(tl.uint32)
    height, width = sizes.height.to(tl.uint32), sizes.width.to(tl.uint32)
    route = lanes[0] * PER_SEQUENCE
    if PER_SEQUENCE > 1:
        passed = place // (height * width)
        route, place = route + passed.to(tl.int32), place - passed * (height * width)
    code = tl.full((1,), ROUTES[0], tl.int32)
    for k in tl.static_range(1, len(ROUTES)):
        code = tl.where(route == k, ROUTES[k], code)
    place = tl.where(code >= 2, height * width - 1 - place, place)
    column = place // height
    place = tl.where(code % 2 == 1, (place - column * height) * width + column, place)
    place = place.to(tl.int64 if WIDE else tl.int32)
    return route.to(place.dtype), place, inside


@triton.jit
def point(tensor, batch, tile, columns):
    """Point to some columns of a :class:`PerToken` at the tokens of a tile, ``[tokens, columns]``."""
    tokens = tile[0] * shown(tensor.route) + tile[1] * shown(tensor.token)
    return tensor.pointer + batch * shown(tensor.batch) + (tokens[:, None] + columns[None, :])


@triton.jit
def read(tensor, batch, tile, columns, limit, dtype: tl.constexpr):
    """Read the columns before a limit, 0 for others; for tokens after the end, those of the last."""
    mask = (columns < limit)[None, :]
    return tl.load(point(tensor, batch, tile, columns), mask, 0.0).to(dtype)


@triton.jit
def read_number(tensor, batch, tile, n, dtype: tl.constexpr):
    """Read the n-th number of each token, ``[tokens, 1]``; after the end, that of the last."""
    return tl.load(point(tensor, batch, tile, n + tl.arange(0, 1))).to(dtype)


@triton.jit
def write(tensor, batch, tile, columns, limit, values):
    mask = tile[2][:, None] & (columns < limit)[None, :]
    tl.store(point(tensor, batch, tile, columns), values.to(tensor.pointer.dtype.element_ty), mask)


@triton.jit
def read_weight(weight, n, sizes, lanes):
    """Read the n-th row of a weight ``(*, S * D)``, ``[channels]``."""
    sequence, channels = lanes
    at = (n * sizes.sets + sequence % sizes.sets) * sizes.channels + channels
    return tl.load(weight + at, channels < sizes.channels, 0.0)


@triton.jit
def point_row(tensor, index, sizes, lanes):
    """Point to the channels of a sequence in a row of ``(rows, sequences * D)``."""
    sequence, channels = lanes
    return tensor + (index * sizes.sequences + sequence) * sizes.channels + channels


@triton.jit
def make_step(inputs, sizes, batch, lanes, tile, R: tl.constexpr, SOFTPLUS: tl.constexpr):
    """Return the step, ``[tokens, channels]``, 0 after the end and after the last channel."""
    dtype: tl.constexpr = inputs.A.dtype.element_ty
    channels = lanes[1]
    if inputs.W_dt is None:
        step = read(inputs.delta, batch, tile, channels, sizes.channels, dtype)
    else:  # no tl.dot: its layout would spread a thread's tokens over channels
        step = tl.zeros((tile[2].shape[0], channels.shape[0]), dtype)
        for r in range(R):
            W_dt = read_weight(inputs.W_dt, r, sizes, lanes)
            step += read_number(inputs.delta, batch, tile, r, dtype) * W_dt[None, :]
    if inputs.bias is not None:
        step += read_weight(inputs.bias, 0, sizes, lanes)[None, :]
    if SOFTPLUS:
        # log(1 + e^x) keeps its digits where e^x is small: what rounding takes from 1 + e^x, the quotient gives back.
        power = tl.exp(step)
        sum_ = 1.0 + power
        same = sum_ == 1.0
        log = tl.where(same, power, tl.log(sum_) * (power / tl.where(same, 1.0, sum_ - 1.0)))
        step = tl.where(step > 20.0, step, log)
    # 0 after the last channel too: there a weight of 0 times infinity is NaN, which sums over channels would spread.
    return tl.where(tile[2][:, None] & (channels < sizes.channels)[None, :], step, 0.0)


@triton.jit
def slope(step):
    """Return the derivative of the softplus whose value is ``step``, 1 - e^-step: fewer registers than to keep it."""
    power = tl.exp(-step)
    # As in make_step: what rounding takes from e^-step, its logarithm gives back.
    same = power == 1.0
    small = tl.where(same, step, (1.0 - power) * (step / tl.where(same, 1.0, -tl.log(power))))
    return tl.where(step < 1.0, small, 1.0 - power)


@triton.jit
def make_decay(inputs, n, sizes, lanes, step):
    """Return exp(step A_n), ``[tokens, channels]``, and A_n, ``[channels]``."""
    A = read_weight(inputs.A, n, sizes, lanes)
    return tl.exp2(step * (A * LOG2_E)[None, :]), A
