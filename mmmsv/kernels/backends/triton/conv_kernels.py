"""The Triton kernels of :func:`mmmsv.kernels.depthwise_conv`.

A program takes some channels of some groups, each of WIDTH neighbours in a line of the result: what one number of the
map is multiplied by for all of them is done at once, so that it is read once and not WIDTH times.
"""

import triton
import triton.language as tl

from .activations import activate, slope
from .conv_tiles import group, read_place, sum_taps
from .map_tiles import find, read, write

_SIZES = ("height", "width", "out_height", "out_width", "channels", "span")
_X, _Y = ("x_batch", "x_token"), ("y_batch", "y_token")
_DY_AGAIN, _DP, _ADDED = ("dy_again_batch", "dy_again_token"), ("dp_batch", "dp_token"), ("added_batch", "added_token")


@triton.jit(do_not_specialize=[*_X, *_ADDED, *_Y, *_SIZES])
def convolve(
    x,
    weight,
    bias,
    added,
    y,
    x_batch,
    x_token,
    added_batch,
    added_token,
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
    SPREAD: tl.constexpr,
    PAD: tl.constexpr,
    REACH: tl.constexpr,
    WIDTH: tl.constexpr,
    ACTIVATION: tl.constexpr,
    VECTOR: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    """Write y; ``weight`` is ``(SPREAD, SPREAD, K, K, D)``.

    A program computes places SPREAD apart in both directions, which have a kernel of their own; the map begins PAD
    places, or as many less as their shift gives, after the first tap of the first one. ``added``, if given, is added.
    """
    dtype: tl.constexpr = weight.dtype.element_ty
    channels = channels // VECTOR * VECTOR  # says that it is a multiple
    top = tl.program_id(0) % (SPREAD * SPREAD) // SPREAD
    left = tl.program_id(0) % SPREAD
    weight += tl.multiple_of((top * SPREAD + left) * K * K * channels, VECTOR)
    lines, groups = tl.cdiv(out_height, SPREAD), tl.cdiv(tl.cdiv(out_width, SPREAD), WIDTH)
    batch, begin, end, _, columns = find(lines * groups, span, channels, COLUMNS, SPREAD * SPREAD)
    for start in range(begin, end, ROWS):
        rows = (start + tl.arange(0, ROWS))[:, None]
        mask = (rows < end) & (columns < channels)
        line, column = group(rows, groups, WIDTH)
        totals = sum_taps(
            x,
            weight,
            bias,
            batch,
            x_batch,
            x_token,
            line * STRIDE - PAD + (top + REACH) // SPREAD,
            column * STRIDE - PAD + (left + REACH) // SPREAD,
            height,
            width,
            channels,
            columns,
            mask,
            K,
            STRIDE,
            WIDTH,
            VECTOR,
            dtype,
        )
        line, column = line * SPREAD + top, column * SPREAD + left
        for i in tl.static_range(WIDTH):
            p = activate(totals[i], ACTIVATION)
            inside = mask & (line < out_height) & (column + i * SPREAD < out_width)
            at = line * out_width + column + i * SPREAD
            if added is not None:
                p += read(added, batch, added_batch, at, added_token, columns, inside, VECTOR, dtype)
            write(y, batch, y_batch, at, y_token, columns, inside, p, VECTOR)


@triton.jit
def _through_activation(
    x,
    weight,
    bias,
    dy,
    dy_again,
    dp,
    batch,
    x_batch,
    x_token,
    y_batch,
    y_token,
    dy_again_batch,
    dy_again_token,
    dp_batch,
    dp_token,
    line,
    column,
    height,
    width,
    out_width,
    channels,
    columns,
    mask,
    K: tl.constexpr,
    STRIDE: tl.constexpr,
    WIDTH: tl.constexpr,
    ACTIVATION: tl.constexpr,
    VECTOR: tl.constexpr,
    dtype: tl.constexpr,
):
    """Write and return the gradients of what goes into the activation, which is computed again.

    That of y is ``dy``, or the sum of ``dy`` and ``dy_again``, if given.
    """
    gradients = ()
    totals = sum_taps(
        x,
        weight,
        bias,
        batch,
        x_batch,
        x_token,
        line * STRIDE - K // 2,
        column * STRIDE - K // 2,
        height,
        width,
        channels,
        columns,
        mask,
        K,
        STRIDE,
        WIDTH,
        VECTOR,
        dtype,
    )
    for i in tl.static_range(WIDTH):
        p, inside, at = totals[i], mask & (column + i < out_width), line * out_width + column + i
        gradient = read(dy, batch, y_batch, at, y_token, columns, inside, VECTOR, dtype)
        if dy_again is not None:
            gradient += read(dy_again, batch, dy_again_batch, at, dy_again_token, columns, inside, VECTOR, dtype)
        gradient *= slope(p, ACTIVATION)
        write(dp, batch, dp_batch, at, dp_token, columns, inside, gradient, VECTOR)
        gradients = gradients + (gradient,)
    return gradients


@triton.jit(do_not_specialize=[*_X, *_Y, *_DY_AGAIN, *_DP, *_SIZES])
def conv_backward_activation(
    x,
    weight,
    bias,
    dy,
    dy_again,
    dp,
    x_batch,
    x_token,
    y_batch,
    y_token,
    dy_again_batch,
    dy_again_token,
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
    WIDTH: tl.constexpr,
    ACTIVATION: tl.constexpr,
    VECTOR: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    """Write the gradient of what goes into the activation."""
    dtype: tl.constexpr = weight.dtype.element_ty
    channels = channels // VECTOR * VECTOR  # says that it is a multiple
    groups = tl.cdiv(out_width, WIDTH)
    batch, begin, end, _, columns = find(out_height * groups, span, channels, COLUMNS)
    for start in range(begin, end, ROWS):
        rows = (start + tl.arange(0, ROWS))[:, None]
        line, column = group(rows, groups, WIDTH)
        _through_activation(
            x,
            weight,
            bias,
            dy,
            dy_again,
            dp,
            batch,
            x_batch,
            x_token,
            y_batch,
            y_token,
            dy_again_batch,
            dy_again_token,
            dp_batch,
            dp_token,
            line,
            column,
            height,
            width,
            out_width,
            channels,
            columns,
            (rows < end) & (columns < channels),
            K,
            STRIDE,
            WIDTH,
            ACTIVATION,
            VECTOR,
            dtype,
        )


@triton.jit(do_not_specialize=[*_X, *_Y, *_DY_AGAIN, *_DP, *_SIZES])
def conv_backward_weight(
    x,
    weight,
    bias,
    dy,
    dy_again,
    dp,
    parts,
    x_batch,
    x_token,
    y_batch,
    y_token,
    dy_again_batch,
    dy_again_token,
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
    WIDTH: tl.constexpr,
    LINES: tl.constexpr,
    ACTIVATION: tl.constexpr,
    VECTOR: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    """Write the sums over each span of the gradients of weight and bias, ``(batch * spans, K * K + 1, D)``.

    A program has LINES of the K lines of taps. With an activation, it also writes the gradient of what goes into that,
    ``dp``; else ``dp`` is read.
    """
    dtype: tl.constexpr = parts.dtype.element_ty
    channels = channels // VECTOR * VECTOR  # says that it is a multiple
    groups = tl.cdiv(out_width, WIDTH)
    batch, begin, end, index, columns = find(out_height * groups, span, channels, COLUMNS, K // LINES)
    first = tl.program_id(0) % (K // LINES) * LINES
    sums = ()
    for _ in tl.static_range(LINES * K + 1):
        sums = sums + (tl.zeros((ROWS, COLUMNS), dtype),)
    for start in range(begin, end, ROWS):
        rows = (start + tl.arange(0, ROWS))[:, None]
        mask = (rows < end) & (columns < channels)
        line, column = group(rows, groups, WIDTH)
        gradients = ()
        if ACTIVATION != "none":
            gradients = _through_activation(
                x,
                weight,
                bias,
                dy,
                dy_again,
                dp,
                batch,
                x_batch,
                x_token,
                y_batch,
                y_token,
                dy_again_batch,
                dy_again_token,
                dp_batch,
                dp_token,
                line,
                column,
                height,
                width,
                out_width,
                channels,
                columns,
                mask,
                K,
                STRIDE,
                WIDTH,
                ACTIVATION,
                VECTOR,
                dtype,
            )
        else:
            for i in tl.static_range(WIDTH):
                gradients = gradients + (
                    read_place(
                        dp,
                        batch,
                        dp_batch,
                        dp_token,
                        line,
                        column + i,
                        out_height,
                        out_width,
                        columns,
                        mask,
                        VECTOR,
                        dtype,
                    ),
                )
        line, column = line * STRIDE + first - K // 2, column * STRIDE - K // 2
        for a in tl.static_range(LINES):
            for j in tl.static_range((WIDTH - 1) * STRIDE + K):
                value = read_place(
                    x, batch, x_batch, x_token, line + a, column + j, height, width, columns, mask, VECTOR, dtype
                )
                new = ()
                for tap in tl.static_range(LINES * K + 1):
                    sum_ = sums[tap]
                    if tap // K == a and tap < LINES * K:
                        for i in tl.static_range(WIDTH):
                            if j == i * STRIDE + tap % K:
                                sum_ += gradients[i] * value
                    new = new + (sum_,)
                sums = new
        sum_ = sums[LINES * K]
        for i in tl.static_range(WIDTH):
            sum_ += gradients[i]
        new = ()
        for tap in tl.static_range(LINES * K):
            new = new + (sums[tap],)
        sums = new + (sum_,)
    real = columns < channels
    parts += index * (K * K + 1) * channels + columns
    for tap in tl.static_range(LINES * K):
        tl.store(parts + (first * K + tap) * channels, tl.sum(sums[tap], 0, keep_dims=True), real)
    tl.store(parts + K * K * channels, tl.sum(sums[LINES * K], 0, keep_dims=True), real & (first == 0))
