"""The feed-forward nets of the blocks."""

from torch import Tensor, nn
from torch.nn.functional import gelu

from .layers import DepthwiseConv2d, Linear, draw_projection
from .recompute import RecomputingModule, recomputed


class ConvFFN(RecomputingModule):
    """A feed-forward net that mixes neighbours: ``fc2(gelu(h + DWConv3x3(h)))`` with ``h = fc1(x)``.

    ``fc1`` and ``fc2`` are the paper's 1 x 1 convolutions, and keep the initial values of convolutions.

    Args:
        dim: Channels of the input and of the output.
        ratio: How much wider it is inside.
        drop_rate: Dropout after the GELU and after ``fc2``.

    Source:
        MSVMamba, arXiv 2405.14174.
    """

    def __init__(self, dim: int, ratio: float, drop_rate: float) -> None:
        super().__init__()
        inner = round(ratio * dim)
        self.fc1 = Linear(dim, inner)
        self.dwconv = DepthwiseConv2d(inner, 3, activation="gelu", residual=True)
        self.fc2 = Linear(inner, dim)
        self.drop = nn.Dropout(drop_rate)

    def forward(self, x: Tensor) -> Tensor:
        """Map ``(B, H, W, C)`` to the same shape."""
        return self.drop(self.mix_and_project(self.fc1(x)))

    @recomputed(on_cpu=False)
    def mix_and_project(self, h: Tensor) -> Tensor:
        """Compute ``fc2(gelu(h + DWConv3x3(h)))`` of ``h``, ``(B, H, W, ratio * C)``."""
        return self.fc2(self.drop(self.dwconv(h)))


class MLP(nn.Module):
    """A feed-forward net on each token alone: ``fc2(gelu(fc1(x)))``.

    Args:
        dim: Channels of the input and of the output.
        ratio: How much wider it is inside.
        drop_rate: Dropout after the GELU and after ``fc2``.

    Source:
        VMamba, arXiv 2401.10166, the release of 2024; also that of Swin and ViT.
    """

    def __init__(self, dim: int, ratio: float, drop_rate: float) -> None:
        super().__init__()
        inner = round(ratio * dim)
        self.fc1 = Linear(dim, inner)
        self.fc2 = Linear(inner, dim)
        self.drop = nn.Dropout(drop_rate)
        for linear in (self.fc1, self.fc2):
            draw_projection(linear)

    def forward(self, x: Tensor) -> Tensor:
        """Map ``(B, H, W, C)`` to the same shape."""
        return self.drop(self.fc2(self.drop(gelu(self.fc1(x)))))
