"""Layers that several modules are made of.

Every map inside the network is channels-last, ``(B, H, W, C)``: linear layers and norms act on it as it is, and a
convolution sees it as a ``torch.channels_last`` tensor without a copy.
"""

from torch import Tensor, nn


class ChannelsLastConv2d(nn.Conv2d):
    """A 2-D convolution from and to channels-last maps; arguments and weights of :class:`torch.nn.Conv2d`."""

    def forward(self, x: Tensor) -> Tensor:
        """Map ``(B, H, W, C_in)`` to ``(B, H', W', C_out)``."""
        return super().forward(x.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)


def projection(in_dim: int, out_dim: int) -> nn.Linear:
    """Make a linear layer without bias, with the initial values of :func:`draw_projection`."""
    return draw_projection(nn.Linear(in_dim, out_dim, bias=False))


def draw_projection(linear: nn.Linear) -> nn.Linear:
    """Draw the weight from a normal distribution of width 0.02, cut off at +-2; set the bias to 0; return the layer."""
    nn.init.trunc_normal_(linear.weight, std=0.02)
    if linear.bias is not None:
        nn.init.zeros_(linear.bias)
    return linear
