"""Sums over the taps of depthwise convolutions in Triton kernels, for neighbours in a line of the result at once."""

import triton
import triton.language as tl

from .map_tiles import read


@triton.jit
def group(rows, groups, WIDTH: tl.constexpr):
    """Return the line of each group, and its first column."""
    return rows // groups, rows % groups * WIDTH


@triton.jit
def read_place(
    x,
    batch,
    x_batch,
    x_token,
    line,
    column,
    height,
    width,
    columns,
    mask,
    VECTOR: tl.constexpr,
    dtype: tl.constexpr,
):
    """Read places of a map, 0 for those that are not on it."""
    on_map = mask & (line >= 0) & (line < height) & (column >= 0) & (column < width)
    return read(x, batch, x_batch, line * width + column, x_token, columns, on_map, VECTOR, dtype)


@triton.jit
def sum_taps(
    x,
    weight,
    bias,
    batch,
    x_batch,
    x_token,
    line,
    column,
    height,
    width,
    channels,
    columns,
    mask,
    K: tl.constexpr,
    STRIDE: tl.constexpr,
    WIDTH: tl.constexpr,
    VECTOR: tl.constexpr,
    dtype: tl.constexpr,
):
    """Return what goes into the activation at WIDTH neighbours, of whom the first has its first tap at a place of x."""
    real = columns < channels
    total = tl.zeros(mask.shape, dtype)
    if bias is not None:
        total += tl.load(bias + columns, real, 0.0)
    totals = ()
    for _ in tl.static_range(WIDTH):
        totals = totals + (total,)
    for a in range(K):
        factors = ()
        for b in tl.static_range(K):
            factors = factors + (tl.load(weight + tl.multiple_of((a * K + b) * channels, VECTOR) + columns, real, 0.0),)
        for j in tl.static_range((WIDTH - 1) * STRIDE + K):
            value = read_place(
                x, batch, x_batch, x_token, line + a, column + j, height, width, columns, mask, VECTOR, dtype
            )
            new = ()
            for i in tl.static_range(WIDTH):
                if j >= i * STRIDE and j < i * STRIDE + K:
                    new = new + (totals[i] + factors[j - i * STRIDE] * value,)
                else:
                    new = new + (totals[i],)
            totals = new
    return totals
