"""The Triton kernels of :func:`mmmsv.kernels.gate`: a program gates some channels of some tokens of an image."""

import triton
import triton.language as tl

from .map_tiles import find, read, write

_SIZES = ("tokens", "span", "channels")


@triton.jit
def _read_weight(weight, batch, channels, columns, dtype: tl.constexpr):
    if weight is None:
        return tl.full(columns.shape, 1.0, dtype)
    else:  # Triton compiles what comes after a return, too
        return tl.load(weight + batch * channels + columns, columns < channels, 0.0)


@triton.jit(do_not_specialize=["y_batch", "y_token", "z_batch", "z_token", "out_batch", "out_token", *_SIZES])
def gate_forward(
    y,
    z,
    weight,
    out,
    y_batch,
    y_token,
    z_batch,
    z_token,
    out_batch,
    out_token,
    tokens,
    span,
    channels,
    VECTOR: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    """Write ``y * weight * SiLU(z)``; z and weight may be None."""
    dtype: tl.constexpr = tl.float64 if y.dtype.element_ty == tl.float64 else tl.float32
    channels = channels // VECTOR * VECTOR  # says that it is a multiple
    batch, begin, end, _, columns = find(tokens, span, channels, COLUMNS)
    weight_ = _read_weight(weight, batch, channels, columns, dtype)
    for start in range(begin, end, ROWS):
        rows = (start + tl.arange(0, ROWS))[:, None]
        mask = (rows < end) & (columns < channels)
        value = weight_ * read(y, batch, y_batch, rows, y_token, columns, mask, VECTOR, dtype)
        if z is not None:
            z_ = read(z, batch, z_batch, rows, z_token, columns, mask, VECTOR, dtype)
            value *= z_ * tl.sigmoid(z_)
        write(out, batch, out_batch, rows, out_token, columns, mask, value, VECTOR)


@triton.jit(
    do_not_specialize=[
        *("y_batch", "y_token", "z_batch", "z_token", "dout_batch", "dout_token", "new_batch", "new_token"),
        *_SIZES,
    ]
)
def gate_backward(
    y,
    z,
    weight,
    dout,
    dy,
    dz,
    parts,
    y_batch,
    y_token,
    z_batch,
    z_token,
    dout_batch,
    dout_token,
    new_batch,
    new_token,
    tokens,
    span,
    channels,
    VECTOR: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    """Write the gradients of y and z, and the sum over each span of that of weight, ``(batch, spans, D)``."""
    dtype: tl.constexpr = tl.float64 if y.dtype.element_ty == tl.float64 else tl.float32
    channels = channels // VECTOR * VECTOR  # says that it is a multiple
    batch, begin, end, index, columns = find(tokens, span, channels, COLUMNS)
    weight_ = _read_weight(weight, batch, channels, columns, dtype)
    sums = tl.zeros((ROWS, COLUMNS), dtype)
    for start in range(begin, end, ROWS):
        rows = (start + tl.arange(0, ROWS))[:, None]
        mask = (rows < end) & (columns < channels)
        y_ = read(y, batch, y_batch, rows, y_token, columns, mask, VECTOR, dtype)
        gradient = read(dout, batch, dout_batch, rows, dout_token, columns, mask, VECTOR, dtype)
        if z is not None:
            z_ = read(z, batch, z_batch, rows, z_token, columns, mask, VECTOR, dtype)
            sigmoid = tl.sigmoid(z_)
            dz_ = gradient * weight_ * y_ * (sigmoid * (1.0 + z_ * (1.0 - sigmoid)))
            write(dz, batch, new_batch, rows, new_token, columns, mask, dz_, VECTOR)
            gradient *= z_ * sigmoid
        write(dy, batch, new_batch, rows, new_token, columns, mask, gradient * weight_, VECTOR)
        if weight is not None:
            sums += gradient * y_
    if weight is not None:
        tl.store(parts + index * channels + columns, tl.sum(sums, 0, keep_dims=True), columns < channels)
