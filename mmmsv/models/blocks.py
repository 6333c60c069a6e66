"""The MS3 block (multi-scale state space block) and a stage of them."""

from collections.abc import Sequence

from torch import Tensor, is_grad_enabled, nn
from torch.nn.functional import gelu
from torch.utils.checkpoint import checkpoint
from torchvision.ops import StochasticDepth

from .layers import ChannelsLastConv2d
from .ms2d import MS2D
from .stems import PatchMerging


class ConvFFN(nn.Module):
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
        self.fc1 = nn.Linear(dim, inner)
        self.dwconv = ChannelsLastConv2d(inner, inner, 3, padding=1, groups=inner)
        self.fc2 = nn.Linear(inner, dim)
        self.drop = nn.Dropout(drop_rate)

    def forward(self, x: Tensor) -> Tensor:
        """Map ``(B, H, W, C)`` to the same shape."""
        x = self.fc1(x)
        x = self.drop(gelu(x + self.dwconv(x)))
        return self.drop(self.fc2(x))


class MS3Block(nn.Module):
    """``x = x + MS2D(LN(x)); x = x + ConvFFN(LN(x))``, each branch with drop path.

    Args:
        dim: Channels C.
        ms2d: The scan of this block.
        ffn: Its feed-forward net; none for a block without one.
        drop_path_rate: Probability that a sample skips a branch while training.

    Source:
        MSVMamba, arXiv 2405.14174.
    """

    def __init__(self, dim: int, ms2d: MS2D, ffn: ConvFFN | None, drop_path_rate: float) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(dim)
        self.ms2d = ms2d
        self.norm2 = None if ffn is None else nn.LayerNorm(dim)
        self.ffn = ffn
        self.drop_path = StochasticDepth(drop_path_rate, mode="row")

    def forward(self, x: Tensor) -> Tensor:
        """Map ``(B, H, W, C)`` to the same shape."""
        x = x + self.drop_path(self.ms2d(self.norm1(x)))
        if self.ffn is not None:
            x = x + self.drop_path(self.ffn(self.norm2(x)))
        return x


class Stage(nn.Module):
    """The blocks of one resolution, behind the patch merging that leads to it.

    Args:
        downsample: From the map of the stage before to this one's; none in the first stage.
        blocks: The blocks, at least one.
        with_cp: Whether to recompute each block in the backward pass instead of keeping its activations.
    """

    def __init__(self, downsample: PatchMerging | None, blocks: Sequence[MS3Block], with_cp: bool) -> None:
        super().__init__()
        self.downsample = downsample
        self.blocks = nn.ModuleList(blocks)
        self.with_cp = with_cp

    def forward(self, x: Tensor) -> Tensor:
        """Map ``(B, H, W, C)`` to ``(B, ceil(H / 2), ceil(W / 2), C')``, or to the same shape in the first stage."""
        if self.downsample is not None:
            x = self.downsample(x)
        for block in self.blocks:
            recompute = self.with_cp and is_grad_enabled()
            x = checkpoint(block, x, use_reentrant=False) if recompute else block(x)
        return x
