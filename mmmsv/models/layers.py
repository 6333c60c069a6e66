"""Layers that several modules are made of.

Every map inside the network is channels-last, ``(B, H, W, C)``: linear layers and norms act on it as it is, and a
convolution sees it as a ``torch.channels_last`` tensor without a copy.
"""

from collections.abc import Callable
from contextvars import ContextVar

from torch import Tensor, is_grad_enabled, nn
from torch.jit import is_tracing
from torch.utils.checkpoint import checkpoint

from mmmsv.kernels import Activation, depthwise_conv, linear
from mmmsv.kernels.old_torch import is_compiling


class Linear(nn.Linear):
    """A linear layer on maps; arguments and weights of :class:`torch.nn.Linear`."""

    def forward(self, x: Tensor) -> Tensor:
        """Map ``(B, H, W, C_in)`` to ``(B, H, W, C_out)``."""
        return linear(x, self.weight, self.bias)


class ChannelsLastConv2d(nn.Conv2d):
    """A 2-D convolution from and to channels-last maps; arguments and weights of :class:`torch.nn.Conv2d`."""

    def forward(self, x: Tensor) -> Tensor:
        """Map ``(B, H, W, C_in)`` to ``(B, H', W', C_out)``."""
        return super().forward(x.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)


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

    def forward(self, x: Tensor) -> Tensor:
        """Map ``(B, H, W, C)`` to ``(B, H', W', C)``."""
        return depthwise_conv(x, self.weight, self.bias, self.stride[0], self.activation, self.residual)


_RECOMPUTED = ContextVar("_RECOMPUTED", default=False)  # whether what runs now is in a call of recompute


def recompute(function: Callable[..., Tensor], *inputs: Tensor | None) -> Tensor:
    """Call a function; in the backward pass, compute what that needs anew from the inputs, instead of keeping it.

    What stands behind the last tensor that is needed, a product by a matrix for instance, is not computed again. Nor is
    anything twice: within such a call another one keeps what it will. So does a program that is compiled or traced.
    """
    if not is_grad_enabled() or is_compiling() or is_tracing() or _RECOMPUTED.get():
        return function(*inputs)

    def marked(*inputs: Tensor | None) -> Tensor:
        before = _RECOMPUTED.set(True)
        try:
            return function(*inputs)
        finally:
            _RECOMPUTED.reset(before)

    return checkpoint(marked, *inputs, use_reentrant=False)


def projection(in_dim: int, out_dim: int) -> nn.Linear:
    """Make a linear layer without bias, with the initial values of :func:`draw_projection`."""
    return draw_projection(Linear(in_dim, out_dim, bias=False))


def draw_projection(linear: nn.Linear) -> nn.Linear:
    """Draw the weight from a normal distribution of width 0.02, cut off at +-2; set the bias to 0; return the layer."""
    nn.init.trunc_normal_(linear.weight, std=0.02)
    if linear.bias is not None:
        nn.init.zeros_(linear.bias)
    return linear
