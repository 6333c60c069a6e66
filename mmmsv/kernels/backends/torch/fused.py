"""The ops around the scans, made of PyTorch's own."""

import torch
from torch import Tensor
from torch.nn.functional import conv2d, gelu, silu
from torch.nn.functional import layer_norm as norm_over_channels

from ...fused import upsample

ACTIVATION_FUNCTIONS = {"none": lambda p: p, "silu": silu, "gelu": gelu}


def depthwise_conv(
    x: Tensor, weight: Tensor, bias: Tensor | None, stride: int, activation: str, residual: bool
) -> Tensor:
    """Compute :func:`mmmsv.kernels.depthwise_conv`."""
    # Numbers: where torch.jit records, a size is a tensor, which torch 2.1 takes for no padding.
    channels, _, kernel, _ = map(int, weight.shape)
    p = conv2d(x.permute(0, 3, 1, 2), weight, bias, stride, kernel // 2, groups=channels).permute(0, 2, 3, 1)
    return ACTIVATION_FUNCTIONS[activation](x + p if residual else p)


def layer_norm(x: Tensor, weight: Tensor, bias: Tensor, eps: float, dtype: torch.dtype) -> Tensor:
    """Compute :func:`mmmsv.kernels.layer_norm`."""
    if dtype == torch.float64 or (dtype == torch.float32 and x.dtype != torch.float64):
        x = x.to(dtype)  # before it is rounded
    return _normalised(x, weight, bias, eps).to(dtype)


def _normalised(x: Tensor, weight: Tensor, bias: Tensor, eps: float) -> Tensor:
    if x.dtype in (torch.float32, torch.float64):
        weight, bias = weight.to(x.dtype), bias.to(x.dtype)
    return norm_over_channels(x, weight.shape, weight, bias, eps)


def gate(y: Tensor, z: Tensor | None, weight: Tensor | None) -> Tensor:
    """Compute :func:`mmmsv.kernels.gate`."""
    if weight is not None:
        y = y * weight[:, None, None]
    return y if z is None else y * silu(z)


def merge_scales(
    full: Tensor, half: Tensor, weight: Tensor, bias: Tensor, eps: float, norm_first: bool, dtype: torch.dtype | None
) -> tuple[Tensor, Tensor]:
    """Compute :func:`mmmsv.kernels.merge_scales`."""
    size = full.shape[1:3]
    if norm_first:
        sums = _normalised(half, weight, bias, eps).sum(1)
        y = _normalised(full, weight, bias, eps) + upsample(sums, size, "bilinear")
    else:
        y = _normalised(full + upsample(half.squeeze(1), size, "nearest"), weight, bias, eps)
    mean = y.mean((1, 2))
    return (y, mean) if dtype is None else (y.to(dtype), mean.to(dtype))
