"""Layers that several modules share.

Every map inside the network is channels-last, ``(B, H, W, C)``: linear layers and norms act on it as it is, and a
convolution sees it as a ``torch.channels_last`` tensor without a copy.
"""

import torch
from torch import Tensor, nn

from mmmsv.compat.torch_versions import get_autocast_dtype, is_autocast_enabled
from mmmsv.kernels import Activation, depthwise_conv, linear

# The norm of every part of the network. Not a subclass: MMEngine's init_cfg knows the layer by the name of its class.
Norm = nn.LayerNorm


class Linear(nn.Linear):
    """A linear layer on maps; arguments and weights of :class:`torch.nn.Linear`."""

    def forward(self, input: Tensor) -> Tensor:
        """Map ``(B, H, W, C_in)`` to ``(B, H, W, C_out)``."""
        return linear(input, self.weight, self.bias)


class HalvedLinear(Linear):
    """A linear layer whose output is two maps; arguments and weights of :class:`torch.nn.Linear`.

    Each half is a product of its own: cut out of one product they would be strided, each would keep the memory of both,
    and a convolution would copy its own.
    """

    def forward(self, input: Tensor, half: int | None = None) -> Tensor:
        """Map ``(B, H, W, C_in)`` to half 0 or 1, ``(B, H, W, C_out / 2)``; to both in one when omitted."""
        if half is None:
            return linear(input, self.weight, self.bias)
        return linear(input, self.weight.chunk(2)[half], None if self.bias is None else self.bias.chunk(2)[half])


class ChannelsLastConv2d(nn.Conv2d):
    """A 2-D convolution from and to channels-last maps; arguments and weights of :class:`torch.nn.Conv2d`."""

    def forward(self, input: Tensor) -> Tensor:
        """Map ``(B, H, W, C_in)`` to ``(B, H', W', C_out)``."""
        return super().forward(input.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)


class DepthwiseConv2d(nn.Conv2d):
    """A depthwise 2-D convolution of channels-last maps with an activation; weights of :class:`torch.nn.Conv2d`.

    ``activation(conv(x))``, or ``activation(x + conv(x))`` where ``residual`` is set.

    Args:
        dim: Channels.
        kernel_size: 3 or 7; the map is padded with zeros.
        stride: A side of H becomes ceil(H / stride) long.
        bias: Whether there is one.
        activation: ``'none'``, ``'silu'`` or ``'gelu'``.
        residual: Whether the input is added; with a stride of 1.
    """

    def __init__(
        self,
        dim: int,
        kernel_size: int,
        stride: int = 1,
        bias: bool = True,
        activation: Activation = "none",
        residual: bool = False,
    ) -> None:
        super().__init__(dim, dim, kernel_size, stride, kernel_size // 2, groups=dim, bias=bias)
        self.activation, self.residual = activation, residual

    def forward(self, input: Tensor) -> Tensor:
        """Map ``(B, H, W, C)`` to ``(B, H', W', C)``."""
        return depthwise_conv(input, self.weight, self.bias, self.stride[0], self.activation, self.residual)


def cast_once(x: Tensor) -> Tensor:
    """Cast what several products take as autocast would do for each, so that they keep one tensor and not two."""
    kind = x.device.type
    if x.dtype == torch.float32 and kind in ("cpu", "cuda") and is_autocast_enabled(kind):
        return x.to(get_autocast_dtype(kind))
    return x


def half_of(projection: nn.Module, half: int, x: Tensor) -> Tensor:
    """Compute half 0 or 1 of a projection: of a :class:`HalvedLinear`, or of an adapter (LoRA) that has replaced it."""
    if isinstance(projection, HalvedLinear):
        return projection(x, half=half)
    return projection(x).chunk(2, -1)[half]


def projection(in_dim: int, out_dim: int, layer: type[nn.Linear] = Linear) -> nn.Linear:
    """Make a linear layer without bias, with the initial values of :func:`draw_projection`."""
    return draw_projection(layer(in_dim, out_dim, bias=False))


def draw_projection(linear: nn.Linear) -> nn.Linear:
    """Draw the weight from a normal distribution of width 0.02, cut off at +-2; set the bias to 0; return the layer."""
    nn.init.trunc_normal_(linear.weight, std=0.02)
    if linear.bias is not None:
        nn.init.zeros_(linear.bias)
    return linear
