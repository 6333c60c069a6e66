"""The Triton kernels of :func:`mmmsv.kernels.depthwise_conv`: a program takes some channels of some tokens."""

import triton
import triton.language as tl

from .map_tiles import find, read, write

_SIZES = ("height", "width", "out_height", "out_width", "channels", "span")
_X, _Y = ("x_batch", "x_token"), ("y_batch", "y_token")


@triton.jit
def _tap(line, column, height, width):
    """Return the index of a place on a map, and whether it is on it."""
    return line * width + column, (line >= 0) & (line < height) & (column >= 0) & (column < width)


@triton.jit
def _factor(weight, tap, channels, columns, mask, VECTOR: tl.constexpr):
    """Read what the channels of one tap are multiplied by."""
    return tl.load(weight + tl.multiple_of(tap * channels, VECTOR) + columns, mask, 0.0)


@triton.jit
def _convolve(
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
    RESIDUAL: tl.constexpr,
    VECTOR: tl.constexpr,
    dtype: tl.constexpr,
):
    """Return what goes into the activation, at some places of the result."""
    real = columns < channels
    total = tl.zeros(mask.shape, dtype)
    if bias is not None:
        total += tl.load(bias + columns, real, 0.0)
    for a in range(K):
        for b in tl.static_range(K):
            at, on_map = _tap(line * STRIDE + a - K // 2, column * STRIDE + b - K // 2, height, width)
            factor = _factor(weight, a * K + b, channels, columns, real, VECTOR)
            total += factor * read(x, batch, x_batch, at, x_token, columns, mask & on_map, VECTOR, dtype)
    if RESIDUAL:
        total += read(x, batch, x_batch, line * width + column, x_token, columns, mask, VECTOR, dtype)
    return total


@triton.jit
def _normal_distribution(p):
    """Return its cumulative function, with which GELU weighs p."""
    return 0.5 * (1.0 + tl.erf(p * 0.7071067811865476))


@triton.jit(do_not_specialize=[*_X, *_Y, *_SIZES])
def conv_forward(
    x,
    weight,
    bias,
    y,
    x_batch,
    x_token,
    y_batch,
    y_token,
    height,
    width,
    out_height,
    out_width,
    channels,
    span,
    K: tl.constexpr,
    STRIDE: tl.constexpr,
    ACTIVATION: tl.constexpr,
    RESIDUAL: tl.constexpr,
    VECTOR: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    """Write y; ``weight`` is ``(K * K, D)``."""
    dtype: tl.constexpr = weight.dtype.element_ty
    channels = channels // VECTOR * VECTOR  # says that it is a multiple
    batch, begin, end, _, columns = find(out_height * out_width, span, channels, COLUMNS)
    for start in range(begin, end, ROWS):
        rows = (start + tl.arange(0, ROWS))[:, None]
        mask = (rows < end) & (columns < channels)
        p = _convolve(
            x,
            weight,
            bias,
            batch,
            x_batch,
            x_token,
            rows // out_width,
            rows % out_width,
            height,
            width,
            channels,
            columns,
            mask,
            K,
            STRIDE,
            RESIDUAL,
            VECTOR,
            dtype,
        )
        if ACTIVATION == "silu":
            p *= tl.sigmoid(p)
        if ACTIVATION == "gelu":
            p *= _normal_distribution(p)
        write(y, batch, y_batch, rows, y_token, columns, mask, p, VECTOR)


@triton.jit(do_not_specialize=[*_X, *_Y, "dp_batch", "dp_token", *_SIZES])
def conv_backward_activation(
    x,
    weight,
    bias,
    dy,
    dp,
    x_batch,
    x_token,
    y_batch,
    y_token,
    dp_batch,
    dp_token,
    height,
    width,
    out_height,
    out_width,
    channels,
    span,
    K: tl.constexpr,
    STRIDE: tl.constexpr,
    ACTIVATION: tl.constexpr,
    RESIDUAL: tl.constexpr,
    VECTOR: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    """Write the gradient of what goes into the activation, which is computed again."""
    dtype: tl.constexpr = weight.dtype.element_ty
    channels = channels // VECTOR * VECTOR  # says that it is a multiple
    batch, begin, end, _, columns = find(out_height * out_width, span, channels, COLUMNS)
    for start in range(begin, end, ROWS):
        rows = (start + tl.arange(0, ROWS))[:, None]
        mask = (rows < end) & (columns < channels)
        p = _convolve(
            x,
            weight,
            bias,
            batch,
            x_batch,
            x_token,
            rows // out_width,
            rows % out_width,
            height,
            width,
            channels,
            columns,
            mask,
            K,
            STRIDE,
            RESIDUAL,
            VECTOR,
            dtype,
        )
        gradient = read(dy, batch, y_batch, rows, y_token, columns, mask, VECTOR, dtype)
        if ACTIVATION == "silu":
            sigmoid = tl.sigmoid(p)
            gradient *= sigmoid * (1.0 + p * (1.0 - sigmoid))
        if ACTIVATION == "gelu":
            gradient *= _normal_distribution(p) + p * 0.3989422804014327 * tl.exp(-0.5 * p * p)
        write(dp, batch, dp_batch, rows, dp_token, columns, mask, gradient, VECTOR)


@triton.jit(do_not_specialize=[*_X, *_Y, *_SIZES])
def conv_backward_x(
    weight,
    dp,
    dx,
    x_batch,
    x_token,
    y_batch,
    y_token,
    height,
    width,
    out_height,
    out_width,
    channels,
    span,
    K: tl.constexpr,
    STRIDE: tl.constexpr,
    RESIDUAL: tl.constexpr,
    VECTOR: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    """Write the gradient of x, each token of which gathers from those of the result that have it in their window.

    A program has tokens STRIDE apart in both directions, from the place on that the second axis of the grid says: the
    same taps reach all of them.
    """
    TAPS: tl.constexpr = (K + STRIDE - 1) // STRIDE
    dtype: tl.constexpr = weight.dtype.element_ty
    channels = channels // VECTOR * VECTOR  # says that it is a multiple
    top, left = tl.program_id(1) // STRIDE, tl.program_id(1) % STRIDE
    lines, row_length = tl.cdiv(height, STRIDE), tl.cdiv(width, STRIDE)
    batch, begin, end, _, columns = find(lines * row_length, span, channels, COLUMNS)
    real = columns < channels
    for start in range(begin, end, ROWS):
        rows = (start + tl.arange(0, ROWS))[:, None]
        line, column = rows // row_length * STRIDE + top, rows % row_length * STRIDE + left
        at, inside = _tap(line, column, height, width)
        mask = (rows < end) & inside & real
        total = tl.zeros((ROWS, COLUMNS), dtype)
        for i in range(TAPS):
            a = (top + K // 2) % STRIDE + i * STRIDE
            for j in tl.static_range(TAPS):
                b = (left + K // 2) % STRIDE + j * STRIDE
                tap, has = _tap((line + K // 2 - a) // STRIDE, (column + K // 2 - b) // STRIDE, out_height, out_width)
                # Divided towards 0, what is above and left of the map would be on it.
                has = has & (line + K // 2 >= a) & (column + K // 2 >= b) & (a < K) & (b < K)
                factor = tl.load(
                    weight + tl.multiple_of((a * K + b) * channels, VECTOR) + columns, real & (a < K) & (b < K), 0.0
                )
                total += factor * read(dp, batch, y_batch, tap, y_token, columns, mask & has, VECTOR, dtype)
        if RESIDUAL:
            total += read(dp, batch, y_batch, at, y_token, columns, mask, VECTOR, dtype)
        write(dx, batch, x_batch, at, x_token, columns, mask, total, VECTOR)


@triton.jit(do_not_specialize=[*_X, *_Y, *_SIZES])
def conv_backward_weight(
    x,
    dp,
    parts,
    x_batch,
    x_token,
    y_batch,
    y_token,
    height,
    width,
    out_height,
    out_width,
    channels,
    span,
    K: tl.constexpr,
    STRIDE: tl.constexpr,
    LINES: tl.constexpr,
    VECTOR: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    """Write the sums over each span of the gradients of weight and bias, ``(batch * spans, K * K + 1, D)``.

    A program has LINES of the K lines of taps: the second axis of the grid.
    """
    dtype: tl.constexpr = parts.dtype.element_ty
    channels = channels // VECTOR * VECTOR  # says that it is a multiple
    batch, begin, end, index, columns = find(out_height * out_width, span, channels, COLUMNS)
    first = tl.program_id(1) * LINES
    sums = ()
    for _ in tl.static_range(LINES * K + 1):
        sums = sums + (tl.zeros((ROWS, COLUMNS), dtype),)
    for start in range(begin, end, ROWS):
        rows = (start + tl.arange(0, ROWS))[:, None]
        mask = (rows < end) & (columns < channels)
        gradient = read(dp, batch, y_batch, rows, y_token, columns, mask, VECTOR, dtype)
        line, column = rows // out_width * STRIDE + first - K // 2, rows % out_width * STRIDE - K // 2
        new = ()
        for tap in tl.static_range(LINES * K):
            at, on_map = _tap(line + tap // K, column + tap % K, height, width)
            value = read(x, batch, x_batch, at, x_token, columns, mask & on_map, VECTOR, dtype)
            new = new + (sums[tap] + gradient * value,)
        sums = new + (sums[LINES * K] + gradient,)
    real = columns < channels
    parts += index * (K * K + 1) * channels + columns
    for tap in tl.static_range(LINES * K):
        tl.store(parts + (first * K + tap) * channels, tl.sum(sums[tap], 0, keep_dims=True), real)
    tl.store(parts + K * K * channels, tl.sum(sums[LINES * K], 0, keep_dims=True), real & (first == 0))
