"""The blocks of the backbones."""

from torch import Tensor, nn

from mmmsv.kernels import branch_off

from .arch import BlockArch
from .ffn import MLP, ConvFFN
from .layers import DropPath, LayerNorm
from .ms2d import Scan2D, build_scan
from .recompute import recompute


class VSSBlock(nn.Module):
    """``x = x + scan(LN(x))``, with drop path.

    Where ``with_cp`` is True, the backward pass computes the block again instead of keeping its activations. That is
    within the block's call, so that what wraps it, as FSDP does, has its weights there.

    Args:
        dim: Channels C.
        scan: The 2-D scan of this block.
        drop_path_rate: Probability that a sample skips the branch while training.

    Source:
        VMamba, arXiv 2401.10166.
    """

    with_cp = False

    def __init__(self, dim: int, scan: Scan2D, drop_path_rate: float) -> None:
        super().__init__()
        self.norm1 = LayerNorm(dim, in_branch=True)
        self.scan = scan
        self.drop_path = DropPath(drop_path_rate)

    def forward(self, x: Tensor) -> Tensor:
        """Map ``(B, H, W, C)`` to the same shape."""
        return recompute(type(self).compute, self, x) if self.with_cp else self.compute(x)

    def compute(self, x: Tensor) -> Tensor:
        """Compute the formula of the block."""
        x, normal = branch_off(self.norm1, x)
        return self.drop_path(x, self.scan(normal))


class MS3Block(VSSBlock):
    """``x = x + scan(LN(x)); x = x + FFN(LN(x))``, each branch with drop path.

    Args:
        dim: Channels C.
        scan: The 2-D scan of this block.
        ffn: Its feed-forward net.
        drop_path_rate: Probability that a sample skips a branch while training.

    Source:
        MSVMamba, arXiv 2405.14174, with MS2D and ConvFFN; the 2024 release of VMamba, with SS2D and MLP.
    """

    def __init__(self, dim: int, scan: Scan2D, ffn: ConvFFN | MLP, drop_path_rate: float) -> None:
        super().__init__(dim, scan, drop_path_rate)
        self.norm2 = LayerNorm(dim, in_branch=True)
        self.ffn = ffn

    def compute(self, x: Tensor) -> Tensor:
        """Compute the formula of the block."""
        x, normal = branch_off(self.norm1, x)
        x = self.drop_path(x, self.scan(normal))
        x, normal = branch_off(self.norm2, x)
        return self.drop_path(x, self.ffn(normal))


class PostNormMS3Block(MS3Block):
    """``x = x + scan(LN(x)); x = x + LN(FFN(x))``, each branch with drop path; arguments of :class:`MS3Block`.

    Source:
        MSVMamba, NeurIPS 2024.
    """

    def __init__(self, dim: int, scan: Scan2D, ffn: ConvFFN | MLP, drop_path_rate: float) -> None:
        super().__init__(dim, scan, ffn, drop_path_rate)
        self.norm2.in_branch = False

    def compute(self, x: Tensor) -> Tensor:
        """Compute the formula of the block."""
        x, normal = branch_off(self.norm1, x)
        x = self.drop_path(x, self.scan(normal))
        return self.drop_path(x, self.norm2(self.ffn(x)))


def build_block(dim: int, arch: BlockArch, ffn_drop_rate: float, drop_path_rate: float) -> VSSBlock:
    """Make the block whose settings ``arch`` has."""
    scan = build_scan(dim, arch)
    if arch.ffn == "none":
        return VSSBlock(dim, scan, drop_path_rate)
    ffn = (ConvFFN if arch.ffn == "conv" else MLP)(dim, arch.ffn_ratio, ffn_drop_rate)
    return (MS3Block if arch.ffn_norm == "pre" else PostNormMS3Block)(dim, scan, ffn, drop_path_rate)
