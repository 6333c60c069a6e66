"""What stands around the scans of a block, each as one op over channels-last maps.

A pass over a map costs about as much as its arithmetic on a CPU, and a fresh map to write to costs more: the system
hands out memory page by page. So what PyTorch does in several passes is one here, and what it keeps for the backward
pass is computed again. On CPUs with the C++ library these are kernels of ours; anywhere else their twins in
:mod:`.plain` run, which ``torch.compile`` can fuse with what stands around them.
"""

from math import prod
from typing import Literal

import torch
from torch import Tensor

from mmmsv.compat.torch_versions import register_flop_formula

from . import dispatch
from .argument_checks import check_bool, check_tensors, one_dtype, state_dtype
from .backends.cpu import fused as native_maps
from .backends.cpu import scan as native_scan
from .backends.torch import fused as plain
from .backends.torch.fused import ACTIVATIONS
from .registration import define

# Beyond the kernels' size it has no use; scratch grows with it.
_LARGEST_STRIDE = 64
Activation = Literal["none", "silu", "gelu"]


def depthwise_conv(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: int = 1,
    activation: Activation = "none",
    residual: bool = False,
) -> Tensor:
    r"""Convolve each channel of a map with a kernel of its own, and apply an activation.

    .. math:: y = activation\Big(b + \sum_k W_k x_k \; (+\, x)\Big)

    Args:
        x: Map, ``(batch, H, W, D)``; float16, bfloat16, float32 or float64.
        weight: ``(D, 1, K, K)``, K being 3 or 7; the map is padded with K // 2 zeros on each side.
        bias: ``(D,)``; none when omitted.
        stride: 1 to 64.
        activation: ``'none'``, ``'silu'`` or ``'gelu'`` (the exact one).
        residual: Whether to add x before the activation; needs a stride of 1.

    Returns:
        ``(batch, ceil(H / stride), ceil(W / stride), D)`` in ``x.dtype``.

    Raises:
        TypeError: An argument is no floating-point tensor; ``residual`` is no bool.
        ValueError: Shapes or devices disagree, or an option is none of those above.
    """
    op = "depthwise_conv"
    check_tensors(op, {"x": x}, {"weight": weight} if bias is None else {"weight": weight, "bias": bias})
    check_bool(op, "residual", residual)
    channels = _channels(op, "x", x)
    if weight.dim() != 4 or weight.shape[2] not in (3, 7) or weight.shape != (channels, 1, *weight.shape[2:3] * 2):
        raise ValueError(
            f"{op}: weight has shape {tuple(weight.shape)}, expected (D, 1, K, K) = ({channels}, 1, K, K) with K = 3 "
            f"or 7, for x {tuple(x.shape)}"
        )
    if bias is not None:
        _check_weight(op, "bias", bias, (channels,), "x", x)
    if type(stride) is not int or not 1 <= stride <= _LARGEST_STRIDE:
        raise ValueError(f"{op}: stride is {stride!r}, expected a whole number in 1..{_LARGEST_STRIDE}")
    if not isinstance(activation, str) or activation not in ACTIVATIONS:
        raise ValueError(f"{op}: activation is {activation!r}, expected one of {tuple(ACTIVATIONS)}")
    if residual and stride > 1:
        raise ValueError(f"{op}: residual needs a stride of 1, given is {stride}")
    if not _has_kernels(x):
        return plain.depthwise_conv(x, weight, bias, stride, activation, residual)
    weight, bias = weight.to(state_dtype(x)), None if bias is None else bias.to(state_dtype(x))
    return _depthwise_conv(x, weight, bias, stride, activation, residual)


def gate(y: Tensor, z: Tensor | None = None, weight: Tensor | None = None) -> Tensor:
    r"""Gate a map, and weigh its channels.

    .. math:: out = y \odot weight \odot \mathrm{SiLU}(z)

    Args:
        y: Map, ``(batch, H, W, D)``; float16, bfloat16, float32 or float64.
        z: Shape of ``y``; 1 in the place of its SiLU when omitted.
        weight: ``(batch, D)``; 1 when omitted.

    Returns:
        ``(batch, H, W, D)`` in the widest dtype of y and z.

    Raises:
        TypeError: An argument is no floating-point tensor.
        ValueError: Shapes or devices disagree.
    """
    op = "gate"
    maps = {"y": y} if z is None else {"y": y, "z": z}
    check_tensors(op, maps, {} if weight is None else {"weight": weight})
    channels = _channels(op, "y", y)
    if z is not None and z.shape != y.shape:
        raise ValueError(f"{op}: z has shape {tuple(z.shape)}, expected that of y, {tuple(y.shape)}")
    if weight is not None:
        _check_weight(op, "weight", weight, (y.shape[0], channels), "y", y)
    if z is None and weight is None:
        return y
    if not _has_kernels(y):
        return plain.gate(y, z, weight)
    y, z = one_dtype(op, maps) if z is not None else (y, None)
    return _gate(y, z, None if weight is None else weight.to(state_dtype(y)))


def merge_scales(full: Tensor, half: Tensor, weight: Tensor, bias: Tensor, eps: float, norm_first: bool) -> Tensor:
    r"""Merge what was scanned in full resolution with what was scanned in a lower one.

    .. math::
        y = \mathrm{LN}(full) + \mathrm{bilinear}\Big(\sum_{routes} \mathrm{LN}(half)\Big)
        \qquad \text{or} \qquad y = \mathrm{LN}(full + \mathrm{nearest}(half))

    Args:
        full: Map, ``(batch, H, W, D)``; float16, bfloat16, float32 or float64.
        half: Maps, ``(batch, routes, h, w, D)``; one alone where the norm comes last.
        weight: Of the norm, ``(D,)``.
        bias: Of the norm, ``(D,)``.
        eps: Of the norm.
        norm_first: Whether the norm comes before the sum; then upsampling is bilinear, otherwise to nearest neighbours.

    Returns:
        ``(batch, H, W, D)`` in the widest dtype of full and half.

    Raises:
        TypeError: An argument is no floating-point tensor; ``norm_first`` is no bool.
        ValueError: Shapes or devices disagree.
    """
    op = "merge_scales"
    maps = {"full": full, "half": half}
    check_tensors(op, maps, {"weight": weight, "bias": bias})
    check_bool(op, "norm_first", norm_first)
    channels = _channels(op, "full", full)
    if half.dim() != 5 or half.shape[0] != full.shape[0] or half.shape[-1] != channels:
        raise ValueError(
            f"{op}: half has shape {tuple(half.shape)}, expected (batch, routes, h, w, D) = ({full.shape[0]}, routes, "
            f"h, w, {channels}) for full {tuple(full.shape)}"
        )
    if not norm_first and half.shape[1] > 1:
        raise ValueError(f"{op}: half has {half.shape[1]} routes, expected one, their sum, where the norm comes last")
    for name, each in (("weight", weight), ("bias", bias)):
        _check_weight(op, name, each, (channels,), "full", full)
    if not _has_kernels(full):
        return plain.merge_scales(full, half, weight, bias, eps, norm_first)
    full, half = one_dtype(op, maps)
    weight, bias = weight.to(state_dtype(full)), bias.to(state_dtype(full))
    return _merge_scales(full, half, weight, bias, eps, norm_first)


def _channels(op: str, name: str, x: Tensor) -> int:
    if x.dim() != 4:
        raise ValueError(f"{op}: {name} has shape {tuple(x.shape)}, expected (batch, H, W, D)")
    return x.shape[3]


def _check_weight(op: str, name: str, weight: Tensor, shape: tuple[int, ...], of: str, x: Tensor) -> None:
    if weight.shape != shape:
        raise ValueError(f"{op}: {name} has shape {tuple(weight.shape)}, expected {shape} for {of} {tuple(x.shape)}")


@torch.compiler.assume_constant_result
def _takes_native() -> bool:
    return dispatch.select(torch.device("cpu")) is native_scan.BACKEND


def _has_kernels(x: Tensor) -> bool:
    # A program that torch.jit records has torch's own ops, which counters of FLOPs and exporters know.
    return x.device.type == "cpu" and not torch.jit.is_tracing() and _takes_native()


_depthwise_conv = define(
    "depthwise_conv",
    "Tensor x, Tensor weight, Tensor? bias, int stride, str activation, bool residual",
    native_maps.depthwise_conv,
    native_maps.depthwise_conv_backward,
    lambda x, weight, bias, stride, *_: (x.new_empty(native_maps.conv_shape(x.shape, stride)), x.new_empty(0)),
)
_gate = define(
    "gate",
    "Tensor y, Tensor? z, Tensor? weight",
    native_maps.gate,
    native_maps.gate_backward,
    lambda y, *_: (y.new_empty(y.shape), y.new_empty(0)),
)
_merge_scales = define(
    "merge_scales",
    "Tensor full, Tensor half, Tensor weight, Tensor bias, float eps, bool norm_first",
    native_maps.merge_scales,
    native_maps.merge_scales_backward,
    lambda full, half, weight, bias, eps, norm_first: (
        full.new_empty(full.shape),
        weight.new_empty(native_maps.moments_shape(full, half, norm_first)),
    ),
)


@register_flop_formula(torch.ops.mmmsv.depthwise_conv)
def _conv_flops(x: tuple, weight: tuple, bias: tuple | None, stride: int, *_: object, **__: object) -> int:
    return 2 * prod(native_maps.conv_shape(x, stride)[:3]) * prod(weight)


@register_flop_formula(torch.ops.mmmsv.depthwise_conv_backward)
def _conv_backward_flops(dy: tuple, kept: tuple, *arguments: object, **__: object) -> int:
    """What goes into the activation again, and the gradients of x and of the weight."""
    return 3 * _conv_flops(*arguments)
