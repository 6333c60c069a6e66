"""The ops of :mod:`.maps` on CPUs: hands tensors to the C++ library of ``csrc/`` by their addresses."""

import ctypes
from collections.abc import Sequence

import torch
from torch import Tensor

from ...argument_checks import state_dtype
from ..strides import ceil_div, laid_out_as, last_axis_innermost
from ..torch.fused import ACTIVATIONS
from .library import DTYPES, GROUPS, LANES, new, run

# Channels of a task of a convolution, ``PITCH`` of depthwise.cpp: some rows of them stay in the cache of a core, and
# each read is long enough for its prefetcher.
_CONV_CHANNELS = 64
# Tasks that a pass is cut into, about, so that many cores are busy with one image too.
_TASKS = 32


class _Map(ctypes.Structure):
    """``Map`` of tasks.h."""

    _fields_ = [("data", ctypes.c_void_p), *((name, ctypes.c_int64) for name in ("batch", "row", "column"))]


_NO_MAP = (None, 0, 0, 0)


class _DepthwiseConv(ctypes.Structure):
    """``DepthwiseConv`` of depthwise.cpp."""

    _integers = (
        *("dtype", "batch", "height", "width", "channels", "out_height", "out_width", "kernel", "stride"),
        *("activation", "residual", "blocks", "parts", "threads"),
    )
    _fields_ = [
        *((name, ctypes.c_int64) for name in _integers),
        ("x", _Map),
        ("y", _Map),
        ("weight", ctypes.c_void_p),
        ("bias", ctypes.c_void_p),
        ("dx", _Map),
        ("weight_parts", ctypes.c_void_p),
        ("scratch", ctypes.c_void_p),
    ]


class _Gate(ctypes.Structure):
    """``Gate`` of gate.cpp."""

    _fields_ = [
        *((name, ctypes.c_int64) for name in ("dtype", "batch", "height", "width", "channels", "parts", "threads")),
        *((name, _Map) for name in ("y", "z", "out")),
        ("weight", ctypes.c_void_p),
        *((name, _Map) for name in ("dy", "dz")),
        ("weight_parts", ctypes.c_void_p),
        ("scratch", ctypes.c_void_p),
    ]


class _Merge(ctypes.Structure):
    """``Merge`` of merge.cpp."""

    _integers = (
        *("dtype", "batch", "height", "width", "half_height", "half_width", "channels", "routes", "norm_first"),
        *("parts", "threads"),
    )
    _fields_ = [
        *((name, ctypes.c_int64) for name in _integers),
        ("eps", ctypes.c_double),
        *((name, _Map) for name in ("full", "half", "y")),
        *((name, ctypes.c_int64) for name in ("half_route", "dhalf_route")),
        *((name, ctypes.c_void_p) for name in ("weight", "bias", "moments", "half_sum")),
        *((name, _Map) for name in ("dfull", "dhalf")),
        *((name, ctypes.c_void_p) for name in ("weight_parts", "scratch")),
    ]


def _rows(tensor: Tensor | None) -> Tensor | None:
    return None if tensor is None else last_axis_innermost(tensor)


def _dense(tensor: Tensor | None) -> Tensor | None:
    return None if tensor is None else tensor.contiguous()


def _of(tensor: Tensor) -> tuple[int, ...]:
    """Describe a map ``(batch, H, W, D)``, whose last axis is contiguous, to the library."""
    return (tensor.data_ptr(), *tensor.stride()[:3])


def _sizes(x: Tensor) -> dict[str, int]:
    """Tell the library what it asks of every map, and how many threads there are."""
    batch, height, width, channels = x.shape
    return {
        "dtype": DTYPES.index(x.dtype),
        "batch": batch,
        "height": height,
        "width": width,
        "channels": channels,
        "threads": torch.get_num_threads(),
    }


def _describe_conv(
    x: Tensor, weight: Tensor, bias: Tensor | None, stride: int, activation: str, residual: bool, y: Tensor
) -> _DepthwiseConv:
    return _DepthwiseConv(
        **_sizes(x),
        out_height=y.shape[1],
        out_width=y.shape[2],
        kernel=weight.shape[2],
        stride=stride,
        activation=list(ACTIVATIONS).index(activation),
        residual=residual,
        x=_of(x),
        y=_of(y),
        weight=weight.data_ptr(),
        bias=None if bias is None else bias.data_ptr(),
    )


def conv_shape(x_shape: Sequence[int], stride: int) -> tuple[int, ...]:
    """Return the shape of y."""
    batch, height, width, channels = x_shape
    return batch, ceil_div(height, stride), ceil_div(width, stride), channels


def depthwise_conv(
    x: Tensor, weight: Tensor, bias: Tensor | None, stride: int, activation: str, residual: bool
) -> tuple[Tensor, Tensor]:
    """Compute :func:`.maps.depthwise_conv`; nothing is kept."""
    batch, *_, channels = x.shape
    x, weight, bias = last_axis_innermost(x), weight.contiguous(), _dense(bias)
    y = new(x, conv_shape(x.shape, stride))
    conv = _describe_conv(x, weight, bias, stride, activation, residual, y)
    conv.blocks = ceil_div(channels, _CONV_CHANNELS)
    # Each number of y is computed alone, so this changes no bit of the results; each task rearranges its weights anew.
    conv.parts = max(min(ceil_div(4 * conv.threads, max(batch * conv.blocks, 1)), y.shape[1]), 1)
    run("depthwise_conv", "forward", conv, weight)
    return y, x.new_empty(0)


def depthwise_conv_backward(
    dy: Tensor,
    kept: Tensor,
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    stride: int,
    activation: str,
    residual: bool,
) -> tuple[Tensor, ...]:
    """Compute the gradients of x, weight and bias; the last is empty where there is none."""
    batch, *_, channels = x.shape
    taps = weight.shape[2] * weight.shape[3]
    x_, dy = last_axis_innermost(x), last_axis_innermost(dy.to(x.dtype))
    weight_, bias_ = weight.contiguous(), _dense(bias)
    dx = new(x, x.shape)
    conv = _describe_conv(x_, weight_, bias_, stride, activation, residual, dy)
    # Neither depends on the number of threads, which must not change the sums. Blocks come in pairs, for two cores.
    conv.blocks = max(min(2 * ceil_div(channels, 2 * _CONV_CHANNELS), ceil_div(channels, LANES)), 1)
    conv.parts = min(batch, GROUPS)
    parts = weight.new_empty(conv.parts, taps + 1, channels)
    conv.dx, conv.weight_parts = _of(dx), parts.data_ptr()
    run("depthwise_conv", "backward", conv, weight)
    sums = parts.sum(0)
    dweight = laid_out_as(weight, sums[:taps].t().reshape(weight.shape))
    return laid_out_as(x, dx), dweight, weight.new_empty(0) if bias is None else laid_out_as(bias, sums[taps])


def _describe_gate(y: Tensor, z: Tensor | None, weight: Tensor | None, out: Tensor) -> _Gate:
    return _Gate(
        **_sizes(y),
        # Not by the number of threads, which must not change the sums.
        parts=max(min(_TASKS, y.shape[1]), 1),
        y=_of(y),
        z=_NO_MAP if z is None else _of(z),
        out=_of(out),
        weight=None if weight is None else weight.data_ptr(),
    )


def gate(y: Tensor, z: Tensor | None, weight: Tensor | None) -> tuple[Tensor, Tensor]:
    """Compute :func:`.maps.gate`; nothing is kept."""
    y, z, weight = _rows(y), _rows(z), _dense(weight)
    out = new(y, y.shape)
    run("gate", "forward", _describe_gate(y, z, weight, out), y)
    return out, y.new_empty(0)


def gate_backward(dout: Tensor, kept: Tensor, y: Tensor, z: Tensor | None, weight: Tensor | None) -> tuple[Tensor, ...]:
    """Compute the gradients of y, z and weight; empty where one is not given."""
    y_, z_, weight_, dout = _rows(y), _rows(z), _dense(weight), last_axis_innermost(dout.to(y.dtype))
    problem = _describe_gate(y_, z_, weight_, dout)
    dy = new(y, y.shape)
    dz = y.new_empty(0) if z is None else new(z, z.shape)
    sums = (
        y.new_empty(0, dtype=state_dtype(y)) if weight is None else weight.new_empty(len(y), problem.parts, y.shape[3])
    )
    problem.dy, problem.dz = _of(dy), _NO_MAP if z is None else _of(dz)
    problem.weight_parts = sums.data_ptr()
    run("gate", "backward", problem, sums)
    return (
        laid_out_as(y, dy),
        dz if z is None else laid_out_as(z, dz),
        sums if weight is None else laid_out_as(weight, sums.sum(1)),
    )


def moments_shape(full: Tensor, half: Tensor, norm_first: bool) -> tuple[int, ...]:
    """Return the shape of what is kept: mean and deviation of each token that goes through the norm."""
    batch, routes, height, width, _ = half.shape
    return batch, full.shape[1] * full.shape[2] + (routes * height * width if norm_first else 0), 2


def _describe_merge(
    full: Tensor, half: Tensor, weight: Tensor, bias: Tensor, eps: float, norm_first: bool, y: Tensor, moments: Tensor
) -> _Merge:
    batch, routes, half_height, half_width, _ = half.shape
    half_batch, half_route, *half_strides = half.stride()[:4]
    return _Merge(
        **_sizes(full),
        half_height=half_height,
        half_width=half_width,
        routes=routes,
        norm_first=norm_first,
        # Not by the number of threads, which must not change the sums.
        parts=max(min(_TASKS, batch * full.shape[1]), 1),
        eps=eps,
        full=_of(full),
        half=(half.data_ptr(), half_batch, *half_strides),
        half_route=half_route,
        y=_of(y),
        weight=weight.data_ptr(),
        bias=bias.data_ptr(),
        moments=moments.data_ptr(),
    )


def merge_scales(
    full: Tensor, half: Tensor, weight: Tensor, bias: Tensor, eps: float, norm_first: bool
) -> tuple[Tensor, Tensor]:
    """Compute :func:`.maps.merge_scales`, and what is kept for the backward pass."""
    if 0 in half.shape[1:4]:
        raise ValueError(f"merge_scales: half has shape {tuple(half.shape)}, expected one route and one token at least")
    full, half, weight, bias = _rows(full), _rows(half), weight.contiguous(), bias.contiguous()
    y, moments = new(full, full.shape), weight.new_empty(moments_shape(full, half, norm_first))
    problem = _describe_merge(full, half, weight, bias, eps, norm_first, y, moments)
    sums = new(weight, (*half.shape[:1], *half.shape[2:])) if norm_first else weight
    problem.half_sum = sums.data_ptr()
    run("merge", "forward", problem, weight)
    return y, moments


def merge_scales_backward(
    dy: Tensor,
    moments: Tensor,
    full: Tensor,
    half: Tensor,
    weight: Tensor,
    bias: Tensor,
    eps: float,
    norm_first: bool,
) -> tuple[Tensor, ...]:
    """Compute the gradients of full, half, weight and bias."""
    full_, half_, weight_, bias_ = _rows(full), _rows(half), weight.contiguous(), bias.contiguous()
    dy = last_axis_innermost(dy.to(full.dtype))
    problem = _describe_merge(full_, half_, weight_, bias_, eps, norm_first, dy, moments)
    dfull, dhalf = new(full, full.shape), new(half, half.shape)
    parts = weight.new_zeros(problem.parts, 2, weight.shape[0])
    half_batch, problem.dhalf_route, *half_strides = dhalf.stride()[:4]
    problem.dfull, problem.dhalf = _of(dfull), (dhalf.data_ptr(), half_batch, *half_strides)
    problem.weight_parts = parts.data_ptr()
    run("merge", "backward", problem, weight)
    dweight, dbias = parts.sum(0)
    return (
        laid_out_as(full, dfull),
        laid_out_as(half, dhalf),
        laid_out_as(weight, dweight),
        laid_out_as(bias, dbias),
    )
