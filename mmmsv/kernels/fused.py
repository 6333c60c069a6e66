"""The ops around the scans of a block, each one pass over channels-last maps.

A pass over a map costs about as much as its arithmetic on a CPU, and a fresh map to write to costs more: the system
hands out memory page by page. So what PyTorch does in several passes is one here, and what it keeps for the backward
pass is computed again. Where a backend has a kernel for an op, the kernel runs; elsewhere the op is made of PyTorch's
own, which ``torch.compile`` can fuse with what is around them.
"""

from typing import Literal

import torch
from torch import Size, Tensor
from torch.nn.functional import interpolate

from . import ops
from .argument_checks import check_bool, check_channels, check_dtype, check_shape, check_tensors
from .arguments import ACTIVATIONS, LARGEST_STRIDE, Activation


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
    check_tensors(op, {"x": x, "weight": weight, **({} if bias is None else {"bias": bias})})
    check_bool(op, "residual", residual)
    channels = check_channels(op, "x", x)
    if weight.dim() != 4 or weight.shape[2] not in (3, 7) or weight.shape != (channels, 1, *weight.shape[2:3] * 2):
        raise ValueError(
            f"{op}: weight has shape {tuple(weight.shape)}, expected (D, 1, K, K) = ({channels}, 1, K, K) with K = 3 "
            f"or 7, for x {tuple(x.shape)}"
        )
    if bias is not None:
        check_shape(op, "bias", bias, (channels,), "x", x)
    if type(stride) is not int or not 1 <= stride <= LARGEST_STRIDE:
        raise ValueError(f"{op}: stride is {stride!r}, expected a whole number in 1..{LARGEST_STRIDE}")
    if not isinstance(activation, str) or activation not in ACTIVATIONS:
        raise ValueError(f"{op}: activation is {activation!r}, expected one of {ACTIVATIONS}")
    if residual and stride > 1:
        raise ValueError(f"{op}: residual needs a stride of 1, given is {stride}")
    return ops.depthwise_conv(x, weight, bias, stride, activation, residual)


def layer_norm(x: Tensor, weight: Tensor, bias: Tensor, eps: float, dtype: torch.dtype | None = None) -> Tensor:
    r"""Normalise each token of a map over its channels, in float32 or wider.

    .. math:: y = \frac{x - mean(x)}{\sqrt{var(x) + eps}} \odot weight + bias

    Args:
        x: Map, ``(batch, H, W, D)``; float16, bfloat16, float32 or float64.
        weight: ``(D,)``.
        bias: ``(D,)``.
        eps: Added to the variance.
        dtype: Of y; that of x when omitted.

    Returns:
        ``(batch, H, W, D)`` in ``dtype``.

    Raises:
        TypeError: An argument is no floating-point tensor; ``dtype`` is none of the dtypes above.
        ValueError: Shapes or devices disagree.
    """
    op = "layer_norm"
    check_tensors(op, {"x": x, "weight": weight, "bias": bias})
    dtype = x.dtype if dtype is None else dtype
    check_dtype(op, "dtype", dtype)
    channels = check_channels(op, "x", x)
    for name, each in (("weight", weight), ("bias", bias)):
        check_shape(op, name, each, (channels,), "x", x)
    return ops.layer_norm(x, weight, bias, eps, dtype)


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
    optional = {name: value for name, value in (("z", z), ("weight", weight)) if value is not None}
    check_tensors(op, {"y": y, **optional})
    channels = check_channels(op, "y", y)
    if z is not None:
        check_shape(op, "z", z, tuple(y.shape), "y", y)
    if weight is not None:
        check_shape(op, "weight", weight, (y.shape[0], channels), "y", y)
    if z is None and weight is None:
        return y
    return ops.gate(y, z, weight)


def merge_scales(
    full: Tensor,
    half: Tensor,
    weight: Tensor,
    bias: Tensor,
    eps: float,
    norm_first: bool,
    dtype: torch.dtype | None = None,
) -> tuple[Tensor, Tensor]:
    r"""Merge what was scanned in full resolution with what was scanned in a lower one; return the mean as well.

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
        dtype: Of the results; the widest one of full and half when omitted.

    Returns:
        y, ``(batch, H, W, D)``, and its mean over the map, ``(batch, D)``, in ``dtype``.

    Raises:
        TypeError: An argument is no floating-point tensor; ``norm_first`` is no bool; ``dtype`` is none of the dtypes
            above.
        ValueError: Shapes or devices disagree.
    """
    op = "merge_scales"
    check_tensors(op, {"full": full, "half": half, "weight": weight, "bias": bias})
    check_bool(op, "norm_first", norm_first)
    if dtype is not None:
        check_dtype(op, "dtype", dtype)
    channels = check_channels(op, "full", full)
    if half.dim() != 5 or half.shape[0] != full.shape[0] or half.shape[-1] != channels:
        raise ValueError(
            f"{op}: half has shape {tuple(half.shape)}, expected (batch, routes, h, w, D) = ({full.shape[0]}, routes, "
            f"h, w, {channels}) for full {tuple(full.shape)}"
        )
    if half.shape[1] == 0 or half.shape[2] == 0 or half.shape[3] == 0:
        raise ValueError(f"{op}: half has shape {tuple(half.shape)}, expected one route and one token at least")
    if not norm_first and half.shape[1] > 1:
        raise ValueError(f"{op}: half has {half.shape[1]} routes, expected one, their sum, where the norm comes last")
    for name, each in (("weight", weight), ("bias", bias)):
        check_shape(op, name, each, (channels,), "full", full)
    return ops.merge_scales(full, half, weight, bias, eps, norm_first, dtype)


def upsample(x: Tensor, size: Size | tuple[int, int], mode: Literal["bilinear", "nearest"]) -> Tensor:
    """Bring a map ``(batch, h, w, D)`` to another size (H, W), corners not aligned; return ``(batch, H, W, D)``."""
    align_corners = False if mode == "bilinear" else None
    return interpolate(x.permute(0, 3, 1, 2), size, mode=mode, align_corners=align_corners).permute(0, 2, 3, 1)
