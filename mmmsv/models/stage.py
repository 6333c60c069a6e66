"""The stages of the backbones."""

from collections.abc import Sequence

from torch import Tensor, nn

from .blocks import VSSBlock
from .inference import compute_in_one_call
from .resolution import ConvDownsample, PatchMerging
from .tracing import one_node


class Stage(nn.Module):
    """Run the blocks of one resolution, after the downsampling that leads to it.

    Args:
        downsample: From the map of the stage before to this one's; none in the first stage.
        blocks: The blocks, at least one.
    """

    def __init__(self, downsample: PatchMerging | ConvDownsample | None, blocks: Sequence[VSSBlock]) -> None:
        super().__init__()
        self.downsample = downsample
        self.blocks = nn.ModuleList(blocks)

    @one_node
    def forward(self, x: Tensor) -> Tensor:
        """Map ``(B, H, W, C)`` to ``(B, ceil(H / 2), ceil(W / 2), C')``, or to the same shape in the first stage."""
        if self.downsample is not None:
            x = self.downsample(x)
        y = compute_in_one_call(self.blocks, x)
        if y is not None:
            return y
        for block in self.blocks:
            x = block(x)
        return x
