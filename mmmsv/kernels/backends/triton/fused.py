"""The ops around the scans by Triton kernels: chooses how they are launched.

Maps are read and written in their dtype, and computed with in float32. Sums over tokens are made in parts, one for each
program, which torch adds up: no atomics, the same bits in every run.
"""

import torch
from torch import Tensor

from ...argument_checks import state_dtype
from ...arguments import Gate, MergeScales, ceil_div
from .maps import SPAN, flat, strides, vector, whole_tokens

# Tokens and channels of a program.
_GATE_SPAN, _GATE_COLUMNS = 64, 128


def gate(given: Gate) -> tuple[Tensor, Tensor]:
    """Compute the gated map; nothing is kept."""
    from .gate_kernels import gate_forward

    y, z, weight = given = _as_read(given)
    out, kept = given.new_results()
    if out.numel():
        with torch.cuda.device_of(y):
            gate_forward[_gate_grid(y)](
                *(y, z, weight, out),
                *(*strides(y), *strides(y if z is None else z), *strides(out)),
                *_gate_sizes(y),
                **_gate_constants(y, z, out),
            )
    return out, kept


def gate_backward(given: Gate, dout: Tensor, kept: Tensor) -> tuple[Tensor | None, ...]:
    """Compute the gradients of y, z and weight."""
    from .gate_kernels import gate_backward

    y, z, weight = given = _as_read(given)
    dout = flat(dout.to(y.dtype))
    dy, dz = y.new_empty(y.shape), None if z is None else y.new_empty(y.shape)
    batch, height, width, channels = y.shape
    parts = y.new_empty(batch, ceil_div(height * width, _GATE_SPAN), channels, dtype=state_dtype(y))
    if y.numel():
        with torch.cuda.device_of(y):
            gate_backward[_gate_grid(y)](
                *(y, z, weight, dout, dy, dz, parts),
                *(*strides(y), *strides(y if z is None else z), *strides(dout), *strides(dy)),
                *_gate_sizes(y),
                **_gate_constants(y, z, dout, dy),
            )
    return dy, dz, None if weight is None else parts.sum(1)


def _as_read(given: Gate) -> Gate:
    y, z, weight = given
    return Gate(flat(y), None if z is None else flat(z), None if weight is None else weight.contiguous())


def _gate_grid(y: Tensor) -> tuple[int]:
    batch, height, width, channels = y.shape
    return (batch * ceil_div(height * width, _GATE_SPAN) * ceil_div(channels, _GATE_COLUMNS),)


def _gate_sizes(y: Tensor) -> tuple[int, int, int]:
    _, height, width, channels = y.shape
    return height * width, _GATE_SPAN, channels


def _gate_constants(*maps: Tensor | None) -> dict[str, int]:
    return {"VECTOR": vector(*maps), "ROWS": 16, "COLUMNS": _GATE_COLUMNS, "num_warps": 4}


def merge_scales(given: MergeScales) -> tuple[Tensor, Tensor, Tensor]:
    """Compute y, its mean, and the mean and inverse deviation of each token that went through the norm."""
    from .merge_kernels import merge_forward, normalise_half

    given = _as_read_merge(given)
    y, mean, moments = given.new_results()
    full, half, weight, bias, eps, norm_first, _ = given
    if not y.numel():
        return y, y.mean((1, 2)), moments
    batch, _, half_height, half_width, channels = half.shape
    sums = half.new_empty(batch, half_height, half_width, channels if norm_first else 0)
    options = _merge_constants(given, y)
    tokens, half_tokens = full.shape[1] * full.shape[2], half_height * half_width
    parts = weight.new_empty(batch, ceil_div(tokens, SPAN), channels)
    with torch.cuda.device_of(full):
        if norm_first:
            normalise_half[batch * ceil_div(half_tokens, SPAN),](
                *(half, sums, moments, *strides(half), tokens, half_tokens, channels, SPAN, eps),
                **options,
                maxnreg=128,  # else the assembler spills some
            )
        merge_forward[batch * parts.shape[1],](
            *(full, half, sums, weight, bias, y, parts, moments),
            *(*strides(full), *strides(half), *strides(y), *_merge_sizes(given), SPAN, eps),
            **options,
            NORM_FIRST=norm_first,
        )
    return y, torch.div(parts.sum(1), tokens, out=mean), moments


def merge_scales_backward(
    given: MergeScales, dy: Tensor, dmean: Tensor | None, moments: Tensor
) -> tuple[Tensor | None, ...]:
    """Compute the gradients of full, half, weight and bias."""
    from .merge_kernels import merge_backward_full, merge_backward_half

    full, half, weight, _, _, norm_first, _ = given = _as_read_merge(given)
    dy = flat(dy)
    dfull, dhalf = full.new_empty(full.shape), half.new_empty(half.shape)
    batch, routes, half_height, half_width, channels = half.shape
    height, width = full.shape[1:3]
    if not dy.numel():
        return dfull, dhalf.zero_(), torch.zeros_like(weight), torch.zeros_like(weight)
    options = _merge_constants(given, dy)
    dmean = None if dmean is None else dmean.contiguous()
    programs, half_programs = ceil_div(height * width, SPAN), ceil_div(half_height * half_width, SPAN)
    parts = weight.new_empty(batch * programs, 2, channels)
    half_parts = weight.new_empty(batch * half_programs, channels)
    with torch.cuda.device_of(full):
        merge_backward_full[batch * programs,](
            *(full, half, weight, moments, dy, dmean, dfull, parts),
            *(*strides(full), *strides(half), *strides(dfull), *strides(dy), *_merge_sizes(given), SPAN),
            **options,
            NORM_FIRST=norm_first,
        )
        gathered = dy if norm_first else dfull
        merge_backward_half[batch * half_programs,](
            *(half, weight, moments, gathered, dmean if norm_first else None, dhalf, half_parts),
            *(*strides(half), *strides(gathered), *_merge_sizes(given), SPAN),
            **options,
            NORM_FIRST=norm_first,
            WINDOW_ROWS=_window(height, half_height, norm_first),
            WINDOW_COLUMNS=_window(width, half_width, norm_first),
        )
    dweight, dbias = parts[:, 0].sum(0), parts[:, 1].sum(0)
    if norm_first:
        dweight += half_parts.sum(0)
        # What is interpolated adds up to what is interpolated from.
        dbias *= 1 + routes
    return dfull, dhalf, dweight, dbias


def _window(length: int, half_length: int, norm_first: bool) -> int:
    """Return how many lines of the full map may have a share of a line of the half map, from the first on."""
    spread = 2 * length if norm_first else length
    return ceil_div(spread, half_length) + (length % half_length > 0)


def _as_read_merge(given: MergeScales) -> MergeScales:
    weight, bias = given.weight.contiguous(), given.bias.contiguous()
    return given._replace(full=flat(given.full), half=flat(given.half), weight=weight, bias=bias)


def _merge_sizes(given: MergeScales) -> tuple[int, ...]:
    return *given.full.shape[1:3], *given.half.shape[2:]


def _merge_constants(given: MergeScales, *maps: Tensor) -> dict[str, int]:
    return {"ROUTES": given.half.shape[1], **whole_tokens(given.full, given.half, *maps)}
