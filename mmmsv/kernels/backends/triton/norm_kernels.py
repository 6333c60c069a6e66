"""The Triton kernels of :func:`mmmsv.kernels.layer_norm`: a program takes some tokens, with all their channels."""

import triton
import triton.language as tl

from .map_tiles import find, read, write
from .moments import normalise, normalise_again, through_norm, write_moments

_SIZES = ("x_batch", "x_token", "y_batch", "y_token", "tokens", "channels", "span")


@triton.jit(do_not_specialize=_SIZES)
def norm_forward(
    x,
    weight,
    bias,
    y,
    moments,
    x_batch,
    x_token,
    y_batch,
    y_token,
    tokens,
    channels,
    span,
    eps: tl.constexpr,
    VECTOR: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    """Write y, and the moments of each token, ``(batch, tokens, 2)``."""
    dtype: tl.constexpr = moments.dtype.element_ty
    channels = channels // VECTOR * VECTOR  # says that it is a multiple
    batch, begin, end, _, columns = find(tokens, span, channels, COLUMNS)
    weight_ = tl.load(weight + columns, columns < channels, 0.0)
    bias_ = tl.load(bias + columns, columns < channels, 0.0)
    moments += batch * tokens * 2
    for start in range(begin, end, ROWS):
        rows = (start + tl.arange(0, ROWS))[:, None]
        inside = rows < end
        mask = inside & (columns < channels)
        x_ = read(x, batch, x_batch, rows, x_token, columns, mask, VECTOR, dtype)
        normal, mean, inverse = normalise(x_, mask, channels, eps)
        write_moments(moments, rows, inside, mean, inverse)
        write(y, batch, y_batch, rows, y_token, columns, mask, normal * weight_ + bias_, VECTOR)


@triton.jit(
    do_not_specialize=[
        "dy_again_batch",
        "dy_again_token",
        "dx_again_batch",
        "dx_again_token",
        "dx_batch",
        "dx_token",
        *_SIZES,
    ]
)
def norm_backward(
    x,
    weight,
    moments,
    dy,
    dy_again,
    dx_again,
    dx,
    parts,
    x_batch,
    x_token,
    y_batch,
    y_token,
    dy_again_batch,
    dy_again_token,
    dx_again_batch,
    dx_again_token,
    dx_batch,
    dx_token,
    tokens,
    channels,
    span,
    VECTOR: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    """Write the gradient of x, and the sums over a program's tokens of those of weight and bias.

    The strides of ``y`` are those of ``dy``; the sums are ``(batch * spans, 2, D)``. What others give y and x is added,
    if given: ``dy_again`` and ``dx_again``.
    """
    dtype: tl.constexpr = moments.dtype.element_ty
    channels = channels // VECTOR * VECTOR  # says that it is a multiple
    batch, begin, end, index, columns = find(tokens, span, channels, COLUMNS)
    weight_ = tl.load(weight + columns, columns < channels, 0.0)
    moments += batch * tokens * 2
    dweight, dbias = tl.zeros((ROWS, COLUMNS), dtype), tl.zeros((ROWS, COLUMNS), dtype)
    for start in range(begin, end, ROWS):
        rows = (start + tl.arange(0, ROWS))[:, None]
        inside = rows < end
        mask = inside & (columns < channels)
        x_ = read(x, batch, x_batch, rows, x_token, columns, mask, VECTOR, dtype)
        normal, inverse = normalise_again(x_, mask, moments, rows, inside)
        gradient = read(dy, batch, y_batch, rows, y_token, columns, mask, VECTOR, dtype)
        if dy_again is not None:
            gradient += read(dy_again, batch, dy_again_batch, rows, dy_again_token, columns, mask, VECTOR, dtype)
        dweight += gradient * normal
        dbias += gradient
        dx_ = through_norm(gradient * weight_, normal, inverse, channels)
        if dx_again is not None:
            dx_ += read(dx_again, batch, dx_again_batch, rows, dx_again_token, columns, mask, VECTOR, dtype)
        write(dx, batch, dx_batch, rows, dx_token, columns, mask, dx_, VECTOR)
    to = parts + index * 2 * channels + columns
    tl.store(to, tl.sum(dweight, 0, keep_dims=True), columns < channels)
    tl.store(to + channels, tl.sum(dbias, 0, keep_dims=True), columns < channels)
