"""The Triton kernels of :func:`mmmsv.kernels.gate`: a program gates some channels of some tokens of an image."""

import triton
import triton.language as tl

_SIZES = ("tokens", "span", "channels")


@triton.jit
def _find(tokens, span, channels, COLUMNS: tl.constexpr):
    """Return the batch index, the first token and the end of a program's span, the span's index, and its columns."""
    blocks, spans = tl.cdiv(channels, COLUMNS), tl.cdiv(tokens, span)
    index = tl.program_id(0)
    columns = index % blocks * COLUMNS + tl.arange(0, COLUMNS)
    index = index // blocks
    begin = index % spans * span
    return (index // spans).to(tl.int64), begin, tl.minimum(begin + span, tokens), index, columns[None, :]


@triton.jit
def _at(map_, batch, map_batch, rows, map_token, columns, VECTOR: tl.constexpr):
    """Point to the columns of some tokens of an image; begin and strides are multiples of VECTOR."""
    image = map_ + tl.multiple_of(batch * map_batch, VECTOR)
    return image + tl.multiple_of(rows * map_token, (VECTOR, VECTOR)) + columns


@triton.jit
def _read_weight(weight, batch, channels, columns, dtype: tl.constexpr):
    if weight is None:
        return tl.full(columns.shape, 1.0, dtype)
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
    batch, begin, end, _, columns = _find(tokens, span, channels, COLUMNS)
    weight_ = _read_weight(weight, batch, channels, columns, dtype)
    for start in range(begin, end, ROWS):
        rows = (start + tl.arange(0, ROWS))[:, None]
        mask = (rows < end) & (columns < channels)
        value = weight_ * tl.load(_at(y, batch, y_batch, rows, y_token, columns, VECTOR), mask, 0.0).to(dtype)
        if z is not None:
            z_ = tl.load(_at(z, batch, z_batch, rows, z_token, columns, VECTOR), mask, 0.0).to(dtype)
            value *= z_ * tl.sigmoid(z_)
        to = _at(out, batch, out_batch, rows, out_token, columns, VECTOR)
        tl.store(to, value.to(out.dtype.element_ty), mask)


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
    batch, begin, end, index, columns = _find(tokens, span, channels, COLUMNS)
    weight_ = _read_weight(weight, batch, channels, columns, dtype)
    sums = tl.zeros((1, COLUMNS), dtype)
    for start in range(begin, end, ROWS):
        rows = (start + tl.arange(0, ROWS))[:, None]
        mask = (rows < end) & (columns < channels)
        y_ = tl.load(_at(y, batch, y_batch, rows, y_token, columns, VECTOR), mask, 0.0).to(dtype)
        gradient = tl.load(_at(dout, batch, dout_batch, rows, dout_token, columns, VECTOR), mask, 0.0).to(dtype)
        new = _at(dy, batch, new_batch, rows, new_token, columns, VECTOR)
        if z is not None:
            z_ = tl.load(_at(z, batch, z_batch, rows, z_token, columns, VECTOR), mask, 0.0).to(dtype)
            sigmoid = tl.sigmoid(z_)
            dz_ = gradient * weight_ * y_ * (sigmoid * (1.0 + z_ * (1.0 - sigmoid)))
            to = _at(dz, batch, new_batch, rows, new_token, columns, VECTOR)
            tl.store(to, dz_.to(dz.dtype.element_ty), mask)
            gradient *= z_ * sigmoid
        tl.store(new, (gradient * weight_).to(dy.dtype.element_ty), mask)
        if weight is not None:
            sums += tl.sum(gradient * y_, 0, keep_dims=True)
    if weight is not None:
        tl.store(parts + index.to(tl.int64) * channels + columns, sums, columns < channels)
