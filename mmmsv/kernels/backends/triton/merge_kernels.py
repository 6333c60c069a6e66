"""The Triton kernels of :func:`mmmsv.kernels.merge_scales`: a program takes some tokens, with all their channels."""

import triton
import triton.language as tl

from .map_tiles import find, read, write
from .moments import normalise, normalise_again, through_norm, write_moments

_MAPS = ("full_batch", "full_token", "half_batch", "half_route", "half_token", "y_batch", "y_token")
_SIZES = ("height", "width", "half_height", "half_width", "channels", "span")


@triton.jit
def _between(line, length, half_length, dtype: tl.constexpr):
    """Return which two lines of the half map a line of the full one lies between, and how much of the second it has."""
    place = tl.maximum((line.to(dtype) + 0.5) * (half_length.to(dtype) / length.to(dtype)) - 0.5, 0.0)
    low = tl.minimum(place.to(tl.int32), half_length - 1)
    return low, tl.minimum(low + 1, half_length - 1), place - low.to(dtype)


@triton.jit
def _nearest(line, length, half_length):
    """Return the line of the half map that a line of the full one copies, as torch rounds it."""
    place = line.to(tl.float32) * (half_length.to(tl.float32) / length.to(tl.float32))
    return tl.minimum(place.to(tl.int32), half_length - 1)


@triton.jit
def _share(line, half_line, length, half_length, NORM_FIRST: tl.constexpr, dtype: tl.constexpr):
    """Return how much of a line of the half map a line of the full map has; 0 for lines that there are not."""
    if NORM_FIRST:
        low, high, to_high = _between(line, length, half_length, dtype)
        share = tl.where(low == half_line, 1.0 - to_high, 0.0) + tl.where(high == half_line, to_high, 0.0)
    else:
        share = tl.where(_nearest(line, length, half_length) == half_line, 1.0, 0.0).to(dtype)
    return tl.where((line >= 0) & (line < length), share, 0.0)


@triton.jit
def _of_mean(dmean, batch, channels, columns, tokens, dtype: tl.constexpr):
    """Return what the mean over a map adds to the gradient of each of its tokens."""
    if dmean is None:
        return tl.zeros(columns.shape, dtype)
    else:
        return tl.load(dmean + batch * channels + columns, columns < channels, 0.0).to(dtype) / tokens


@triton.jit
def _first(half_line, length, half_length, NORM_FIRST: tl.constexpr):
    """Return the first line of the full map that has a share of a line of the half map, or the one before it."""
    ratio = length.to(tl.float32) / half_length.to(tl.float32)
    if NORM_FIRST:  # those after the place of the line before; rounding must leave none of them out
        return tl.floor((half_line.to(tl.float32) - 0.5) * ratio - 0.501).to(tl.int32) + 1
    else:
        return tl.floor(half_line.to(tl.float32) * ratio).to(tl.int32)


@triton.jit(do_not_specialize=["half_batch", "half_route", "half_token", "full_tokens", "tokens", "channels", "span"])
def normalise_half(
    half,
    sums,
    moments,
    half_batch,
    half_route,
    half_token,
    full_tokens,
    tokens,
    channels,
    span,
    eps: tl.constexpr,
    ROUTES: tl.constexpr,
    VECTOR: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    """Write the sum over the routes of the normalised tokens of the half map, ``(batch, h, w, D)``, and the moments."""
    dtype: tl.constexpr = moments.dtype.element_ty
    channels = channels // VECTOR * VECTOR  # says that it is a multiple
    batch, begin, end, _, columns = find(tokens, span, channels, COLUMNS)
    moments += batch * (full_tokens + ROUTES * tokens) * 2
    for start in range(begin, end, ROWS):
        rows = (start + tl.arange(0, ROWS))[:, None]
        inside = rows < end
        mask = inside & (columns < channels)
        total = tl.zeros((ROWS, COLUMNS), dtype)
        for route in range(ROUTES):
            route_ = half + tl.multiple_of(route * half_route, VECTOR)
            x = read(route_, batch, half_batch, rows, half_token, columns, mask, VECTOR, dtype)
            normal, mean, inverse = normalise(x, mask, channels, eps)
            write_moments(moments, full_tokens + route * tokens + rows, inside, mean, inverse)
            total += normal
        write(sums, batch, tokens * channels, rows, channels, columns, mask, total, VECTOR)


@triton.jit
def _read_full(
    full,
    half,
    full_batch,
    full_token,
    half_batch,
    half_token,
    batch,
    rows,
    columns,
    mask,
    height,
    width,
    half_height,
    half_width,
    NORM_FIRST: tl.constexpr,
    VECTOR: tl.constexpr,
    dtype: tl.constexpr,
):
    """Read what goes into the norm of the full map: with the norm last, the half map too."""
    x = read(full, batch, full_batch, rows, full_token, columns, mask, VECTOR, dtype)
    if not NORM_FIRST:
        line, column = _nearest(rows // width, height, half_height), _nearest(rows % width, width, half_width)
        x += read(half, batch, half_batch, line * half_width + column, half_token, columns, mask, VECTOR, dtype)
    return x


@triton.jit(do_not_specialize=[*_MAPS, *_SIZES])
def merge_forward(
    full,
    half,
    sums,
    weight,
    bias,
    y,
    parts,
    moments,
    full_batch,
    full_token,
    half_batch,
    half_route,
    half_token,
    y_batch,
    y_token,
    height,
    width,
    half_height,
    half_width,
    channels,
    span,
    eps: tl.constexpr,
    ROUTES: tl.constexpr,
    NORM_FIRST: tl.constexpr,
    VECTOR: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    """Write y, its sums over a program's tokens, ``(batch * spans, D)``, and the moments of the full map.

    With the norm first, ``sums`` are those of :func:`normalise_half`.
    """
    dtype: tl.constexpr = moments.dtype.element_ty
    tokens, half_tokens = height * width, half_height * half_width
    channels = channels // VECTOR * VECTOR  # says that it is a multiple
    batch, begin, end, index, columns = find(tokens, span, channels, COLUMNS)
    weight_ = tl.load(weight + columns, columns < channels, 0.0)
    bias_ = tl.load(bias + columns, columns < channels, 0.0)
    moments += batch * (tokens + (ROUTES * half_tokens if NORM_FIRST else 0)) * 2
    sum_of_y = tl.zeros((ROWS, COLUMNS), dtype)
    for start in range(begin, end, ROWS):
        rows = (start + tl.arange(0, ROWS))[:, None]
        inside = rows < end
        mask = inside & (columns < channels)
        x = _read_full(
            full,
            half,
            full_batch,
            full_token,
            half_batch,
            half_token,
            batch,
            rows,
            columns,
            mask,
            height,
            width,
            half_height,
            half_width,
            NORM_FIRST,
            VECTOR,
            dtype,
        )
        normal, mean, inverse = normalise(x, mask, channels, eps)
        write_moments(moments, rows, inside, mean, inverse)
        total = bias_
        if NORM_FIRST:
            # The norm's weight and bias come out of the interpolation.
            total = bias_ * (1 + ROUTES)
            top, bottom, to_bottom = _between(rows // width, height, half_height, dtype)
            left, right, to_right = _between(rows % width, width, half_width, dtype)
            corners = (
                (top, left, (1.0 - to_bottom) * (1.0 - to_right)),
                (top, right, (1.0 - to_bottom) * to_right),
                (bottom, left, to_bottom * (1.0 - to_right)),
                (bottom, right, to_bottom * to_right),
            )
            for corner in tl.static_range(4):
                line, column, share = corners[corner]
                at = line * half_width + column
                normal += share * read(sums, batch, half_tokens * channels, at, channels, columns, mask, VECTOR, dtype)
        y_ = normal * weight_ + total
        sum_of_y += tl.where(mask, y_, 0.0)
        write(y, batch, y_batch, rows, y_token, columns, mask, y_, VECTOR)
    tl.store(parts + index * channels + columns, tl.sum(sum_of_y, 0, keep_dims=True), columns < channels)


@triton.jit(do_not_specialize=[*_MAPS, "dy_batch", "dy_token", *_SIZES])
def merge_backward_full(
    full,
    half,
    weight,
    moments,
    dy,
    dmean,
    dfull,
    parts,
    full_batch,
    full_token,
    half_batch,
    half_route,
    half_token,
    y_batch,
    y_token,
    dy_batch,
    dy_token,
    height,
    width,
    half_height,
    half_width,
    channels,
    span,
    ROUTES: tl.constexpr,
    NORM_FIRST: tl.constexpr,
    VECTOR: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    """Write the gradient of full, and the sums over a program's tokens of those of weight and bias.

    ``dfull`` has the strides of ``y``; the sums are ``(batch * spans, 2, D)``.
    """
    dtype: tl.constexpr = moments.dtype.element_ty
    tokens = height * width
    channels = channels // VECTOR * VECTOR  # says that it is a multiple
    batch, begin, end, index, columns = find(tokens, span, channels, COLUMNS)
    weight_ = tl.load(weight + columns, columns < channels, 0.0)
    moments += batch * (tokens + (ROUTES * half_height * half_width if NORM_FIRST else 0)) * 2
    dweight, dbias = tl.zeros((ROWS, COLUMNS), dtype), tl.zeros((ROWS, COLUMNS), dtype)
    of_mean = _of_mean(dmean, batch, channels, columns, tokens, dtype)
    for start in range(begin, end, ROWS):
        rows = (start + tl.arange(0, ROWS))[:, None]
        inside = rows < end
        mask = inside & (columns < channels)
        x = _read_full(
            full,
            half,
            full_batch,
            full_token,
            half_batch,
            half_token,
            batch,
            rows,
            columns,
            mask,
            height,
            width,
            half_height,
            half_width,
            NORM_FIRST,
            VECTOR,
            dtype,
        )
        normal, inverse = normalise_again(x, mask, moments, rows, inside)
        gradient = read(dy, batch, dy_batch, rows, dy_token, columns, mask, VECTOR, dtype)
        gradient += tl.where(mask, of_mean, 0.0)
        dweight += gradient * normal
        dbias += gradient
        dx = through_norm(gradient * weight_, normal, inverse, channels)
        write(dfull, batch, y_batch, rows, y_token, columns, mask, dx, VECTOR)
    to = parts + index * 2 * channels + columns
    tl.store(to, tl.sum(dweight, 0, keep_dims=True), columns < channels)
    tl.store(to + channels, tl.sum(dbias, 0, keep_dims=True), columns < channels)


@triton.jit(do_not_specialize=["half_batch", "half_route", "half_token", "dy_batch", "dy_token", *_SIZES])
def merge_backward_half(
    half,
    weight,
    moments,
    dy,
    dmean,
    dhalf,
    parts,
    half_batch,
    half_route,
    half_token,
    dy_batch,
    dy_token,
    height,
    width,
    half_height,
    half_width,
    channels,
    span,
    ROUTES: tl.constexpr,
    NORM_FIRST: tl.constexpr,
    WINDOW_ROWS: tl.constexpr,
    WINDOW_COLUMNS: tl.constexpr,
    VECTOR: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    """Write the gradient of half, ``(batch, routes, h, w, D)``, and the sums over a program's tokens of that of weight.

    A token gathers from those of the full map that have a share of it; with the norm first, ``dy`` is the gradient of
    y, else that of what went into the norm. The sums are ``(batch * spans, D)``.
    """
    dtype: tl.constexpr = moments.dtype.element_ty
    tokens = half_height * half_width
    channels = channels // VECTOR * VECTOR  # says that it is a multiple
    batch, begin, end, index, columns = find(tokens, span, channels, COLUMNS)
    weight_ = tl.load(weight + columns, columns < channels, 0.0)
    moments += batch * (height * width + ROUTES * tokens) * 2
    dweight = tl.zeros((ROWS, COLUMNS), dtype)
    of_mean = _of_mean(dmean, batch, channels, columns, height * width, dtype)
    for start in range(begin, end, ROWS):
        rows = (start + tl.arange(0, ROWS))[:, None]
        inside = rows < end
        mask = inside & (columns < channels)
        half_line, half_column = rows // half_width, rows % half_width
        top = _first(half_line, height, half_height, NORM_FIRST)
        left = _first(half_column, width, half_width, NORM_FIRST)
        dsum = tl.zeros((ROWS, COLUMNS), dtype)
        for i in range(WINDOW_ROWS):
            down = _share(top + i, half_line, height, half_height, NORM_FIRST, dtype)
            for j in tl.static_range(WINDOW_COLUMNS):
                share = down * _share(left + j, half_column, width, half_width, NORM_FIRST, dtype)
                at, has = (top + i) * width + left + j, mask & (share != 0.0)
                dsum += share * (read(dy, batch, dy_batch, at, dy_token, columns, has, VECTOR, dtype) + of_mean)
        for route in range(ROUTES):
            dx = dsum
            if NORM_FIRST:
                route_ = half + tl.multiple_of(route * half_route, VECTOR)
                x = read(route_, batch, half_batch, rows, half_token, columns, mask, VECTOR, dtype)
                at = height * width + route * tokens + rows
                normal, inverse = normalise_again(x, mask, moments, at, inside)
                dweight += dsum * normal
                dx = through_norm(dsum * weight_, normal, inverse, channels)
            write(dhalf, batch * ROUTES + route, tokens * channels, rows, channels, columns, mask, dx, VECTOR)
    tl.store(parts + index * channels + columns, tl.sum(dweight, 0, keep_dims=True), columns < channels)
