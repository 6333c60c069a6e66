"""Tiles of maps ``(batch, H, W, D)`` in the Triton kernels around the scans: some tokens of an image, some channels."""

import triton
import triton.language as tl


@triton.jit
def find(tokens, span, channels, COLUMNS: tl.constexpr, SHARED: tl.constexpr = 1):
    """Find what a program computes: some channels of a span of tokens, which SHARED programs have in common.

    Returns the batch index, the first token, the end, the index of the span among all of the batch, and the channels,
    ``[1, COLUMNS]``.
    """
    blocks, spans = tl.cdiv(channels, COLUMNS), tl.cdiv(tokens, span)
    index = tl.program_id(0) // SHARED
    columns = index % blocks * COLUMNS + tl.arange(0, COLUMNS)
    index = index // blocks
    begin = index % spans * span
    batch = (index // spans).to(tl.int64)
    return batch, begin, tl.minimum(begin + span, tokens), index.to(tl.int64), columns[None, :]


@triton.jit
def at(map_, batch, map_batch, rows, map_token, columns, VECTOR: tl.constexpr):
    """Point to the columns of some tokens of an image; begin and strides are multiples of VECTOR."""
    image = map_ + tl.multiple_of(batch * map_batch, VECTOR)
    return image + tl.multiple_of(rows * map_token, (VECTOR, VECTOR)) + columns


@triton.jit
def read(map_, batch, map_batch, rows, token, columns, mask, VECTOR: tl.constexpr, dtype: tl.constexpr):
    """Read the columns of some tokens of an image, 0 where the mask is not set."""
    return tl.load(at(map_, batch, map_batch, rows, token, columns, VECTOR), mask, 0.0).to(dtype)


@triton.jit
def write(map_, batch, map_batch, rows, token, columns, mask, values, VECTOR: tl.constexpr):
    """Write the columns of some tokens of an image, in the dtype of the map."""
    to = at(map_, batch, map_batch, rows, token, columns, VECTOR)
    tl.store(to, values.to(map_.dtype.element_ty), mask)
