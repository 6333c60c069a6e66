"""The ops around the scans by Triton kernels: chooses how they are launched.

Maps are read and written in their dtype, and computed with in float32. Sums over tokens are made in parts, one for each
program, which torch adds up: no atomics, the same bits in every run.
"""

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ...argument_checks import state_dtype
from ...arguments import Gate, MergeScales, ceil_div
from .maps import SPAN, flat, strides, vector, whole_tokens

if TYPE_CHECKING:  # which imports Triton
    from .launch import Launch

# Tokens and channels of a program.
_GATE_SPAN, _GATE_COLUMNS = 64, 128


def gate(given: Gate) -> tuple[Tensor, Tensor]:
    """Compute the gated map; nothing is kept."""
    from .gate_kernels import gate_forward
    from .launch import launch

    given = _as_read(given)
    out, kept = given.new_results()
    if out.numel():
        launch(gate_forward, (*given, out), _prepare_gate)
    return out, kept


def gate_backward(given: Gate, dout: Tensor, kept: Tensor) -> tuple[Tensor | None, ...]:
    """Compute the gradients of y, z and weight."""
    from .gate_kernels import gate_backward
    from .launch import launch

    y, z, weight = given = _as_read(given)
    dy, dz = y.new_empty(y.shape), None if z is None else y.new_empty(y.shape)
    batch, height, width, channels = y.shape
    parts = y.new_empty(batch, ceil_div(height * width, _GATE_SPAN), channels, dtype=state_dtype(y))
    if y.numel():
        launch(gate_backward, (*given, flat(dout.to(y.dtype)), dy, dz, parts), _prepare_gate_backward)
    return dy, dz, None if weight is None else parts.sum(1)


def _as_read(given: Gate) -> Gate:
    y, z, weight = given
    return Gate(flat(y), None if z is None else flat(z), None if weight is None else weight.contiguous())


def _prepare_gate(y: Tensor, z: Tensor | None, weight: Tensor | None, out: Tensor) -> "Launch":
    return _launch_of_gate(y, y if z is None else z, out)


def _prepare_gate_backward(
    y: Tensor,
    z: Tensor | None,
    weight: Tensor | None,
    dout: Tensor,
    dy: Tensor,
    dz: Tensor | None,
    parts: Tensor,
) -> "Launch":
    return _launch_of_gate(y, y if z is None else z, dout, dy)


def _launch_of_gate(*maps: Tensor) -> "Launch":
    from .launch import Launch

    batch, height, width, channels = maps[0].shape
    tokens = height * width
    return Launch(
        batch * ceil_div(tokens, _GATE_SPAN) * ceil_div(channels, _GATE_COLUMNS),
        (*strides(*maps), tokens, _GATE_SPAN, channels),
        {"VECTOR": vector(*maps), "ROWS": 16, "COLUMNS": _GATE_COLUMNS, "num_warps": 4},
    )


def merge_scales(given: MergeScales) -> tuple[Tensor, Tensor, Tensor]:
    """Compute y, its mean, and the mean and inverse deviation of each token that went through the norm."""
    from .launch import launch
    from .merge_kernels import merge_forward, normalise_half

    given = _as_read_merge(given)
    y, mean, moments = given.new_results()
    full, half, weight, bias, eps, norm_first, _ = given
    if not y.numel():
        return y, y.mean((1, 2)), moments
    batch, _, half_height, half_width, channels = half.shape
    sums = half.new_empty(batch, half_height, half_width, channels if norm_first else 0)
    tokens = full.shape[1] * full.shape[2]
    parts = weight.new_empty(batch, ceil_div(tokens, SPAN), channels)
    if norm_first:
        launch(normalise_half, (half, sums, moments), _prepare_normalise, tokens, eps)
    launch(merge_forward, (full, half, sums, weight, bias, y, parts, moments), _prepare_merge, norm_first, eps)
    return y, torch.div(parts.sum(1), tokens, out=mean), moments


def merge_scales_backward(
    given: MergeScales, dy: Tensor, dmean: Tensor | None, moments: Tensor
) -> tuple[Tensor | None, ...]:
    """Compute the gradients of full, half, weight and bias."""
    from .launch import launch
    from .merge_kernels import merge_backward_full, merge_backward_half

    full, half, weight, _, _, norm_first, _ = _as_read_merge(given)
    dy = flat(dy)
    dfull, dhalf = full.new_empty(full.shape), half.new_empty(half.shape)
    batch, routes, half_height, half_width, channels = half.shape
    if not dy.numel():
        return dfull, dhalf.zero_(), torch.zeros_like(weight), torch.zeros_like(weight)
    dmean = None if dmean is None else dmean.contiguous()
    parts = weight.new_empty(batch * ceil_div(full.shape[1] * full.shape[2], SPAN), 2, channels)
    half_parts = weight.new_empty(batch * ceil_div(half_height * half_width, SPAN), channels)
    launch(
        merge_backward_full, (full, half, weight, moments, dy, dmean, dfull, parts), _prepare_backward_full, norm_first
    )
    gathered = (dy, dmean) if norm_first else (dfull, None)
    launch(
        merge_backward_half,
        (half, weight, moments, *gathered, dhalf, half_parts),
        _prepare_backward_half,
        *(full.shape[1], full.shape[2], norm_first),
    )
    dweight, dbias = parts.sum(0)
    if norm_first:
        dweight += half_parts.sum(0)
        # What is interpolated adds up to what is interpolated from.
        dbias *= 1 + routes
    return dfull, dhalf, dweight, dbias


def _as_read_merge(given: MergeScales) -> MergeScales:
    weight, bias = given.weight.contiguous(), given.bias.contiguous()
    return given._replace(full=flat(given.full), half=flat(given.half), weight=weight, bias=bias)


def _prepare_normalise(half: Tensor, sums: Tensor, moments: Tensor, tokens: int, eps: float) -> "Launch":
    from .launch import Launch

    batch, routes, height, width, channels = half.shape
    constants = whole_tokens(half, sums)
    return Launch(
        batch * ceil_div(height * width, SPAN),
        (*strides(half), tokens, height * width, channels, SPAN, eps),
        {"ROUTES": routes, **constants},
    )


def _prepare_merge(
    full: Tensor,
    half: Tensor,
    sums: Tensor,
    weight: Tensor,
    bias: Tensor,
    y: Tensor,
    parts: Tensor,
    moments: Tensor,
    norm_first: bool,
    eps: float,
) -> "Launch":
    from .launch import Launch

    numbers = (*strides(full, half, y), *full.shape[1:3], *half.shape[2:], SPAN, eps)
    constants = {"ROUTES": half.shape[1], "NORM_FIRST": norm_first, **whole_tokens(full, half, y)}
    return Launch(parts.shape[0] * parts.shape[1], numbers, constants)


def _prepare_backward_full(
    full: Tensor,
    half: Tensor,
    weight: Tensor,
    moments: Tensor,
    dy: Tensor,
    dmean: Tensor | None,
    dfull: Tensor,
    parts: Tensor,
    norm_first: bool,
) -> "Launch":
    from .launch import Launch

    maps = (full, half, dfull, dy)
    constants = {"ROUTES": half.shape[1], "NORM_FIRST": norm_first, **whole_tokens(*maps)}
    return Launch(len(parts), (*strides(*maps), *full.shape[1:3], *half.shape[2:], SPAN), constants)


def _prepare_backward_half(
    half: Tensor,
    weight: Tensor,
    moments: Tensor,
    gathered: Tensor,
    dmean: Tensor | None,
    dhalf: Tensor,
    parts: Tensor,
    height: int,
    width: int,
    norm_first: bool,
) -> "Launch":
    from .launch import Launch

    constants = {
        "ROUTES": half.shape[1],
        "NORM_FIRST": norm_first,
        "WINDOW_ROWS": _window(height, half.shape[2], norm_first),
        "WINDOW_COLUMNS": _window(width, half.shape[3], norm_first),
        **whole_tokens(half, gathered, dhalf),
    }
    numbers = (*strides(half, gathered), height, width, *half.shape[2:], SPAN)
    return Launch(len(parts), numbers, constants)


def _window(length: int, half_length: int, norm_first: bool) -> int:
    """Return how many lines of the full map may have a share of a line of the half map, from the first on."""
    spread = 2 * length if norm_first else length
    return ceil_div(spread, half_length) + (length % half_length > 0)
