"""The ops around the scans in C++: hands tensors to the library by their addresses."""

import ctypes

import torch
from torch import Tensor

from ...argument_checks import state_dtype
from ...arguments import ACTIVATIONS, DepthwiseConv, Gate, MergeScales, ceil_div
from ...strides import last_axis_innermost
from .library import DTYPES, GROUPS, LANES, loaded_library
from .memory import in_huge_pages

# The most channels of a task of a convolution, ``PITCH`` of depthwise.cpp.
_CONV_CHANNELS = 64
# Tasks that a pass is cut into, about, so that many cores are busy with one image too.
_TASKS = 32


class _Map(ctypes.Structure):
    """``Map`` of tasks.h."""

    _fields_ = [("data", ctypes.c_void_p), *((name, ctypes.c_int64) for name in ("batch", "row", "column"))]


_NO_MAP = (None, 0, 0, 0)


class _DepthwiseConv(ctypes.Structure):
    """``DepthwiseConv`` of depthwise.h."""

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
        *((name, _Map) for name in ("dx", "dy_again", "dx_again")),
        ("weight_parts", ctypes.c_void_p),
        ("scratch", ctypes.c_void_p),
    ]


class _Gate(ctypes.Structure):
    """``Gate`` of gate.h."""

    _fields_ = [
        *((name, ctypes.c_int64) for name in ("dtype", "batch", "height", "width", "channels", "parts", "threads")),
        *((name, _Map) for name in ("y", "z", "out")),
        ("weight", ctypes.c_void_p),
        *((name, _Map) for name in ("dy", "dz")),
        ("weight_parts", ctypes.c_void_p),
        ("scratch", ctypes.c_void_p),
    ]


class _Merge(ctypes.Structure):
    """``Merge`` of merge.h."""

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


def _dense(tensor: Tensor | None) -> Tensor | None:
    return None if tensor is None else tensor.contiguous()


def _of(tensor: Tensor) -> tuple[int, ...]:
    """Describe a map ``(batch, H, W, D)``, whose last axis is contiguous, to the library."""
    return (tensor.data_ptr(), *tensor.stride()[:3])


def _of_routes(tensor: Tensor) -> tuple[int, tuple[int, ...]]:
    """Describe maps ``(batch, routes, H, W, D)``: the stride of the routes, and the first map."""
    batch, route, row, column, _ = tensor.stride()
    return route, (tensor.data_ptr(), batch, row, column)


def _new_like(tensor: Tensor) -> Tensor:
    return in_huge_pages(tensor.new_empty(tensor.shape))


def _sizes(x: Tensor) -> dict[str, int]:
    """Return what the library asks of every map, and the number of threads."""
    batch, height, width, channels = x.shape
    return {
        "dtype": DTYPES.index(x.dtype),
        "batch": batch,
        "height": height,
        "width": width,
        "channels": channels,
        "threads": torch.get_num_threads(),
    }


def _as_read_conv(conv: DepthwiseConv) -> DepthwiseConv:
    """Return the arguments with tensors as the library reads them."""
    x, weight, bias, stride, activation, residual = conv
    x, weight, bias = last_axis_innermost(x), weight.contiguous(), _dense(bias)
    return DepthwiseConv(x, weight, bias, stride, activation, residual)


def _describe_conv(conv: DepthwiseConv, y: Tensor) -> _DepthwiseConv:
    x, weight, bias, stride, activation, residual = conv
    return _DepthwiseConv(
        **_sizes(x),
        out_height=y.shape[1],
        out_width=y.shape[2],
        kernel=weight.shape[2],
        stride=stride,
        activation=ACTIVATIONS.index(activation),
        residual=residual,
        x=_of(x),
        y=_of(y),
        weight=weight.data_ptr(),
        bias=None if bias is None else bias.data_ptr(),
    )


def depthwise_conv(conv: DepthwiseConv) -> tuple[Tensor, Tensor]:
    """Compute y; nothing is kept."""
    conv, (y, kept) = _as_read_conv(conv), conv.new_results()
    problem = _describe_conv(conv, in_huge_pages(y))
    loaded_library().depthwise_conv.forward(problem, conv.weight)
    return y, kept


def depthwise_conv_backward(
    conv: DepthwiseConv, dy: Tensor, kept: Tensor, dy_again: Tensor | None = None, dx_again: Tensor | None = None
) -> tuple[Tensor | None, ...]:
    """Compute the gradients of x, weight and bias; those that others give y and x are added."""
    conv, dy, dx = _as_read_conv(conv), last_axis_innermost(dy.to(conv.x.dtype)), _new_like(conv.x)
    others = [None if each is None else last_axis_innermost(each.to(dx.dtype)) for each in (dy_again, dx_again)]
    channels, (*_, height, width) = conv.x.shape[3], conv.weight.shape
    problem = _describe_conv(conv, dy)
    # Neither depends on the number of threads, which must not change the sums. Blocks come in pairs, for two cores.
    problem.blocks = max(min(2 * ceil_div(channels, 2 * _CONV_CHANNELS), ceil_div(channels, LANES)), 1)
    problem.parts = min(len(dx), GROUPS)
    parts = conv.weight.new_empty(problem.parts, height * width + 1, channels)
    problem.dx, problem.weight_parts = _of(dx), parts.data_ptr()
    problem.dy_again, problem.dx_again = (_NO_MAP if each is None else _of(each) for each in others)
    loaded_library().depthwise_conv.backward(problem, conv.weight)
    sums = parts.sum(0)
    return dx, sums[:-1].t().reshape(conv.weight.shape), sums[-1]


def _as_read_gate(gate: Gate) -> Gate:
    y, z, weight = gate
    return Gate(last_axis_innermost(y), None if z is None else last_axis_innermost(z), _dense(weight))


def _describe_gate(gate: Gate, out: Tensor) -> _Gate:
    y, z, weight = gate
    return _Gate(
        **_sizes(y),
        # Not by the number of threads, which must not change the sums.
        parts=max(min(_TASKS, y.shape[1]), 1),
        y=_of(y),
        z=_NO_MAP if z is None else _of(z),
        out=_of(out),
        weight=None if weight is None else weight.data_ptr(),
    )


def gate(given: Gate) -> tuple[Tensor, Tensor]:
    """Compute the gated map; nothing is kept."""
    given, (out, kept) = _as_read_gate(given), given.new_results()
    loaded_library().gate.forward(_describe_gate(given, in_huge_pages(out)), given.y)
    return out, kept


def gate_backward(given: Gate, dout: Tensor, kept: Tensor) -> tuple[Tensor | None, ...]:
    """Compute the gradients of y, z and weight."""
    y, z, weight = given = _as_read_gate(given)
    dy, dz = _new_like(y), None if z is None else _new_like(z)
    dout = last_axis_innermost(dout.to(y.dtype))
    problem = _describe_gate(given, dout)
    parts = (0, 1) if weight is None else (len(y), problem.parts, y.shape[3])
    sums = y.new_empty(parts, dtype=state_dtype(y))
    problem.dy, problem.dz, problem.weight_parts = _of(dy), _NO_MAP if dz is None else _of(dz), sums.data_ptr()
    loaded_library().gate.backward(problem, sums)
    return dy, dz, sums.sum(1)


def _describe_merge(merge: MergeScales, y: Tensor, moments: Tensor) -> _Merge:
    full, half, weight, bias, eps, norm_first, _ = merge
    batch, routes, half_height, half_width, _ = half.shape
    half_route, half_map = _of_routes(half)
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
        half=half_map,
        half_route=half_route,
        y=_of(y),
        weight=weight.data_ptr(),
        bias=bias.data_ptr(),
        moments=moments.data_ptr(),
    )


def _as_read_merge(merge: MergeScales) -> MergeScales:
    """Return the arguments with tensors as the library reads them."""
    full, half = last_axis_innermost(merge.full), last_axis_innermost(merge.half)
    return merge._replace(full=full, half=half, weight=merge.weight.contiguous(), bias=merge.bias.contiguous())


def merge_scales(merge: MergeScales) -> tuple[Tensor, Tensor, Tensor]:
    """Compute y, its mean, and the mean and inverse deviation of each token that went through the norm."""
    merge = _as_read_merge(merge)
    y, _, moments = merge._replace(dtype=None).new_results()
    problem = _describe_merge(merge, in_huge_pages(y), moments)
    batch, _, *sizes = merge.half.shape
    half_sum = in_huge_pages(merge.weight.new_empty(batch, *sizes)) if merge.norm_first else merge.weight
    problem.half_sum = half_sum.data_ptr()
    loaded_library().merge.forward(problem, merge.weight)
    return y.to(merge.y_dtype), y.mean((1, 2)).to(merge.y_dtype), moments


def merge_scales_backward(
    merge: MergeScales, dy: Tensor, dmean: Tensor | None, moments: Tensor
) -> tuple[Tensor | None, ...]:
    """Compute the gradients of full, half, weight and bias."""
    dy = dy.to(merge.full.dtype)
    if dmean is not None:
        dy = dy + (dmean.to(dy.dtype) / (dy.shape[1] * dy.shape[2]))[:, None, None]
    merge, dy = _as_read_merge(merge), last_axis_innermost(dy)
    dfull, dhalf = _new_like(merge.full), _new_like(merge.half)
    problem = _describe_merge(merge, dy, moments)
    parts = merge.weight.new_zeros(problem.parts, 2, merge.weight.shape[0])
    problem.dfull, (problem.dhalf_route, problem.dhalf) = _of(dfull), _of_routes(dhalf)
    problem.weight_parts = parts.data_ptr()
    loaded_library().merge.backward(problem, merge.weight)
    dweight, dbias = parts.sum(0)
    return dfull, dhalf, dweight, dbias
