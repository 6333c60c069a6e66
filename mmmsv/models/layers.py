"""Layers that several modules share.

Every map inside the network is channels-last, ``(B, H, W, C)``: linear layers and norms act on it as it is, and a
convolution sees it as a ``torch.channels_last`` tensor without a copy.
"""

import torch
from torch import Tensor, nn
from torchvision.ops import StochasticDepth

from mmmsv.compat.torch_versions import get_autocast_dtype, is_autocast_enabled
from mmmsv.kernels import Activation, depthwise_conv, layer_norm, linear

from .tracing import one_node


class LayerNorm(nn.LayerNorm):
    """Normalise each token of a map; weights of :class:`torch.nn.LayerNorm`, and its name, which init_cfg knows.

    Args:
        dim: Channels.
        in_branch: Whether matrix products follow before anything is added to the result, which then has their dtype:
            that of autocast, or float16 in a model whose weights are, though a scan gives float32. The result of
            another norm is float32 under the autocast of GPUs, as PyTorch's own is.
    """

    in_branch = False

    def __init__(self, dim: int, in_branch: bool = False) -> None:
        super().__init__(dim)
        self.in_branch = in_branch

    def forward(self, input: Tensor) -> Tensor:
        """Map ``(B, H, W, C)`` to the same shape."""
        return layer_norm(input, self.weight, self.bias, self.eps, self.result_dtype(input))

    def result_dtype(self, input: Tensor) -> torch.dtype:
        """Return the dtype of the result."""
        if input.dtype != torch.float64 and (products := _autocast_dtype(input)):
            if self.in_branch:
                return products
            if input.device.type == "cuda":
                return torch.float32
        elif self.in_branch and input.dtype == torch.float32 and self.weight.dtype == torch.float16:
            return torch.float16
        return input.dtype


class OutputNorm(LayerNorm):
    """Normalise a map that leaves the backbone, and lay it out as necks, heads and whatever hooks it expect.

    Tools that look at a network take its last norm and read what it returns as ``(B, C, H, W)``.
    """

    @one_node
    def forward(self, input: Tensor) -> Tensor:
        """Map ``(B, H, W, C)`` to ``(B, C, H, W)``, contiguous."""
        return super().forward(input).permute(0, 3, 1, 2).contiguous()


class DropPath(StochasticDepth):
    """Add a branch to its input; while training, some samples skip the branch, and the others have more of it.

    Args:
        rate: Probability that a sample skips it.

    Source:
        Deep Networks with Stochastic Depth, arXiv 1603.09382.
    """

    def __init__(self, rate: float) -> None:
        super().__init__(rate, mode="row")

    # pyrefly: ignore[bad-override]: torch lets each module take what it needs
    def forward(self, x: Tensor, branch: Tensor) -> Tensor:
        """Map x and its branch, both ``(B, H, W, C)``, to their sum."""
        if not self.training or self.p == 0:
            return x + branch
        kept = 1 - self.p
        weights = branch.new_empty(branch.shape[0], 1, 1, 1).bernoulli_(kept).div_(kept)
        return torch.addcmul(x, branch, weights)


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
    dtype = _autocast_dtype(x)
    return x.to(dtype) if dtype and x.dtype == torch.float32 else x


def _autocast_dtype(x: Tensor) -> torch.dtype | None:
    """Return the dtype of matrix products under autocast on x's device; None where autocast is off."""
    kind = x.device.type
    return get_autocast_dtype(kind) if kind in ("cpu", "cuda") and is_autocast_enabled(kind) else None


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
