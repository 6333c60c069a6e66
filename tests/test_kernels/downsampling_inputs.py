"""Layers that lower the resolution, with random weights, and the same computed step by step in float64."""

import torch
from torch.nn import functional

from mmmsv.kernels.whole_block import Downsampling, Norm

# Relative to the largest number: of sums of some tens of numbers, through norms.
TOLERANCE = {torch.float32: 32 * torch.finfo(torch.float32).eps, torch.bfloat16: 4 * torch.finfo(torch.bfloat16).eps}
MERGING, CONV, STEM = "merging", "conv", "conv without a bias"


def layer(kind, channels=10, outputs=21, dtype=torch.float32):
    generator = torch.Generator().manual_seed(0)

    def draw(*shape):
        return torch.randn(shape, generator=generator).div(3).to(dtype)

    def norm(size):
        return Norm(1 + draw(size), draw(size), 0.25)

    if kind == MERGING:
        weight, bias = draw(outputs, 4 * channels), draw(outputs)
        return Downsampling(norm(4 * channels), weight, bias, None, kernel=2, stride=2, padding=0)
    weight, bias = draw(outputs, channels, 3, 3), draw(outputs) if kind == CONV else None
    return Downsampling(None, weight, bias, norm(outputs), kernel=3, stride=2, padding=1)


def by_steps(x, layer):
    """Compute it in float64, from what the library gets."""
    layer = Downsampling(*(part.double() if isinstance(part, torch.Tensor) else part for part in layer))
    x = x.double()

    def normalise(x, norm):
        return (
            x if norm is None else functional.layer_norm(x, x.shape[-1:], norm[0].double(), norm[1].double(), norm[2])
        )

    if layer.weight.dim() == 4:
        y = functional.conv2d(x.permute(0, 3, 1, 2), layer.weight, layer.bias, layer.stride, layer.padding)
        return normalise(y.permute(0, 2, 3, 1), layer.norm_out)
    x = functional.pad(x, (0, 0, 0, x.shape[2] % 2, 0, x.shape[1] % 2))
    patches = torch.cat([x[:, row::2, column::2] for column in (0, 1) for row in (0, 1)], -1)
    return functional.linear(normalise(patches, layer.norm_in), layer.weight, layer.bias)


def map_of(size, channels=10, dtype=torch.float32):
    return torch.randn(*size, channels, generator=torch.Generator().manual_seed(1)).to(dtype)
