"""Normalise the maps after the 2-D scans, and make one of two resolutions."""

from typing import Literal

from torch import Size, Tensor

from mmmsv.kernels import merge_scales, upsample

from .layers import LayerNorm


class NormFirstFusion(LayerNorm):
    r"""Normalise each resolution, then upsample bilinearly and add; weights of :class:`torch.nn.LayerNorm`.

    .. math:: y = \mathrm{LN}(full) + \mathrm{bilinear}\Big(\sum_{routes} \mathrm{LN}(half)\Big)

    Source:
        MSVMamba, arXiv 2405.14174.
    """

    # pyrefly: ignore[bad-override]: torch lets each module take what it needs
    def forward(self, full: Tensor, half: Tensor) -> tuple[Tensor, Tensor]:
        """Fuse ``(B, H, W, D)`` and one map for each half route, ``(B, routes, h, w, D)``.

        Return y, ``(B, H, W, D)``, and its mean over the map, ``(B, D)``.
        """
        return merge_scales(full, half, self.weight, self.bias, self.eps, True, self.result_dtype(full))


class NormLastFusion(LayerNorm):
    r"""Upsample to the nearest neighbours, add, then normalise the sum; weights of :class:`torch.nn.LayerNorm`.

    .. math:: y = \mathrm{LN}(full + \mathrm{nearest}(half))

    Source:
        MSVMamba, NeurIPS 2024.
    """

    # pyrefly: ignore[bad-override]: torch lets each module take what it needs
    def forward(self, full: Tensor, half: Tensor) -> tuple[Tensor, Tensor]:
        """Fuse ``(B, H, W, D)`` and the sum over the half routes, ``(B, h, w, D)``.

        Return y, ``(B, H, W, D)``, and its mean over the map, ``(B, D)``.
        """
        return merge_scales(full, half.unsqueeze(1), self.weight, self.bias, self.eps, False, self.result_dtype(full))


class UpsampledNorm(LayerNorm):
    """Normalise a map, then upsample it; weights of :class:`torch.nn.LayerNorm`.

    Args:
        dim: Channels D.
        mode: ``'bilinear'`` or ``'nearest'``.
    """

    def __init__(self, dim: int, mode: Literal["bilinear", "nearest"]) -> None:
        super().__init__(dim, in_branch=True)
        self.mode = mode

    # pyrefly: ignore[bad-override]: torch lets each module take what it needs
    def forward(self, half: Tensor, size: Size) -> Tensor:
        """Map ``(B, h, w, D)`` to ``(B, H, W, D)``, where ``size`` is (H, W)."""
        return upsample(super().forward(half), size, self.mode)
