"""The ops around the scans, made of PyTorch's own."""

from torch import Tensor
from torch.nn.functional import conv2d, gelu, layer_norm, silu

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


def gate(y: Tensor, z: Tensor | None, weight: Tensor | None) -> Tensor:
    """Compute :func:`mmmsv.kernels.gate`."""
    if weight is not None:
        y = y * weight[:, None, None]
    return y if z is None else y * silu(z)


def merge_scales(full: Tensor, half: Tensor, weight: Tensor, bias: Tensor, eps: float, norm_first: bool) -> Tensor:
    """Compute :func:`mmmsv.kernels.merge_scales`."""
    size = full.shape[1:3]
    if norm_first:
        sums = layer_norm(half, weight.shape, weight, bias, eps).sum(1)
        return layer_norm(full, weight.shape, weight, bias, eps) + upsample(sums, size, "bilinear")
    return layer_norm(full + upsample(half.squeeze(1), size, "nearest"), weight.shape, weight, bias, eps)
