"""The 2-D selective scans: SS2D of VMamba (arXiv 2401.10166) and MS2D of MSVMamba (arXiv 2405.14174)."""

import math
from collections.abc import Callable
from functools import partial

import torch
from torch import Size, Tensor, nn

from mmmsv.kernels import branch_off, gate, read_twice

from .arch import BlockArch
from .fusion import NormFirstFusion, NormLastFusion, UpsampledNorm
from .layers import DepthwiseConv2d, HalvedLinear, LayerNorm, cast_once, half_of, projection
from .recompute import RecomputingModule, recomputed
from .s6 import S6


class SqueezeExcite(nn.Module):
    """Compute a weight for each channel of a map from its mean over the map: ``sigmoid(W_2 relu(W_1 mean))``.

    Args:
        dim: Channels.
        reduction: How much narrower the hidden layer is.

    Source:
        Squeeze-and-Excitation, arXiv 1709.01507, without biases.
    """

    def __init__(self, dim: int, reduction: int = 8) -> None:
        super().__init__()
        self.reduce = projection(dim, dim // reduction)
        self.expand = projection(dim // reduction, dim)

    def forward(self, mean: Tensor) -> Tensor:
        """Map ``(B, C)`` to the same shape."""
        return self.expand(self.reduce(mean).relu()).sigmoid()


class Scan2D(RecomputingModule):
    r"""The parts that all 2-D scans share: the projections, the norm, the gate and squeeze-and-excitation.

    .. math::
        x, z = W_{in}\, input, \qquad output = W_{out}\,(y \odot \mathrm{SE}(y) \odot \mathrm{SiLU}(z))

    The forward of each subclass computes y from x.

    Args:
        dim: Channels C of the input and of the output.
        arch: Settings: ``state_size`` N, ``ssm_ratio`` (D = ssm_ratio * C channels inside), routes, and so on.
        out_norm: Makes the norm that turns what was scanned, with D channels, into y.
    """

    def __init__(self, dim: int, arch: BlockArch, out_norm: Callable[[int], LayerNorm]) -> None:
        super().__init__()
        self.inner, self.dt_rank = round(arch.ssm_ratio * dim), math.ceil(dim / 16)
        self.gated = arch.gate
        self.in_proj = projection(dim, 2 * self.inner, HalvedLinear) if self.gated else projection(dim, self.inner)
        self.out_norm = out_norm(self.inner)
        self.se = SqueezeExcite(self.inner) if arch.se else None
        self.out_proj = projection(self.inner, dim)

    def project_in(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return the input, ``(B, H, W, C)``, for :meth:`project_out`, and x of the formula, ``(B, H, W, D)``."""
        x, again = read_twice(cast_once(x))
        return again, half_of(self.in_proj, 0, x) if self.gated else self.in_proj(x)

    @recomputed(on_cpu=False)
    def project_out(self, x: Tensor, scanned: Tensor, *others: Tensor | Size) -> Tensor:
        """Compute the output, ``(B, H, W, C)``, from the input and from what ``out_norm`` takes."""
        z = half_of(self.in_proj, 1, x) if self.gated else None
        return self.gate_and_project(scanned, z, x.dtype, *others)

    @recomputed(on_cpu=True)
    def gate_and_project(self, scanned: Tensor, z: Tensor | None, dtype: torch.dtype, *others: Tensor | Size) -> Tensor:
        """Compute the output from what ``out_norm`` takes, and from z of the formula, ``(B, H, W, D)``, in a dtype."""
        y, mean = self.normalise(scanned, *others)
        # A norm that is kept in float32 in a model in float16 gives float32.
        weight = None if self.se is None or mean is None else self.se(mean.to(dtype))
        return self.out_proj(gate(y.to(dtype), z, weight))

    def normalise(self, *scanned: Tensor | Size) -> tuple[Tensor, Tensor | None]:
        """Compute y, ``(B, H, W, D)``, and its mean over the map, ``(B, D)``, if squeeze-and-excitation needs it."""
        y = self.out_norm(*scanned)
        return y, None if self.se is None else y.mean((1, 2))

    def _full(self, arch: BlockArch) -> tuple[DepthwiseConv2d, S6]:
        """Make the convolution and the scan of the full-resolution map."""
        conv = DepthwiseConv2d(self.inner, 3, bias=arch.conv_bias, activation="silu")
        return conv, S6(self.inner, arch.state_size, self.dt_rank, arch.full_routes, carry=False)

    def _half(self, arch: BlockArch, carry: bool) -> tuple[DepthwiseConv2d, S6]:
        """Make the convolution that lowers the resolution, odd sides rounded up, and the scan of its map."""
        conv = DepthwiseConv2d(self.inner, arch.half_kernel, arch.half_stride, bias=arch.conv_bias, activation="silu")
        return conv, S6(self.inner, arch.state_size, self.dt_rank, arch.half_routes, carry)


class SS2D(Scan2D):
    r"""2-D selective scan: several routes over the map, each a sequence with a parameter set of its own.

    .. math:: y = \mathrm{LN}\Big(\sum_{routes} \mathrm{S6}(\mathrm{SiLU}(\mathrm{DWConv}_{3\times3}(x)))\Big)

    Source:
        VMamba, arXiv 2401.10166.
    """

    def __init__(self, dim: int, arch: BlockArch) -> None:
        super().__init__(dim, arch, partial(LayerNorm, in_branch=True))
        self.full_conv, self.full_scan = self._full(arch)

    def forward(self, x: Tensor) -> Tensor:
        """Map ``(B, H, W, C)`` to the same shape."""
        x, inner = self.project_in(x)
        full = self.full_scan(self.full_conv(inner), merge=True)
        return self.project_out(x, full)


class HalfSS2D(Scan2D):
    r"""SS2D over a map of lower resolution, (F, H) = (0, 4) of MSVMamba's ablation.

    .. math:: y = \mathrm{upsample}\Big(\mathrm{LN}\Big(\sum_{routes}
        \mathrm{S6}(\mathrm{SiLU}(\mathrm{DWConv}_{kernel,\,stride}(x)))\Big)\Big)

    Source:
        MSVMamba, arXiv 2405.14174, Table 5, with ``half_kernel=3``, which makes it SS2D with a stride. Each route has a
        parameter set of its own; the norm is where SS2D's is, which makes no difference to nearest neighbours.
    """

    def __init__(self, dim: int, arch: BlockArch) -> None:
        mode = "bilinear" if arch.fusion == "norm_first" else "nearest"
        super().__init__(dim, arch, partial(UpsampledNorm, mode=mode))
        self.half_conv, self.half_scan = self._half(arch, carry=False)

    def forward(self, x: Tensor) -> Tensor:
        """Map ``(B, H, W, C)`` to the same shape."""
        x, inner = self.project_in(x)
        half = self.half_scan(self.half_conv(inner), merge=True)
        return self.project_out(x, half, x.shape[1:3])


class MS2D(Scan2D):
    r"""Multi-scale 2-D selective scan: few routes over the full map, the others over a map of half the resolution.

    .. math::
        full &= \sum_{full\ routes} \mathrm{S6}(\mathrm{SiLU}(\mathrm{DWConv}_{3\times3}(x))) \\
        half &= \mathrm{S6}(\mathrm{SiLU}(\mathrm{DWConv}_{7\times7,\,stride\,2}(x))) \\
        y &= \mathrm{fusion}(full, half)

    Each full-resolution route is a sequence with a parameter set of its own. The half-resolution routes are one
    sequence with one parameter set: the state runs on from the end of one route into the start of the next. The fusion
    is :class:`~mmmsv.models.fusion.NormFirstFusion` of each half route, or
    :class:`~mmmsv.models.fusion.NormLastFusion` of their sum.

    Source:
        MSVMamba, arXiv 2405.14174 (norm first) and NeurIPS 2024 (norm last).
    """

    def __init__(self, dim: int, arch: BlockArch) -> None:
        fusion = NormFirstFusion if arch.fusion == "norm_first" else NormLastFusion
        super().__init__(dim, arch, partial(fusion, in_branch=True))
        self.merge_half = arch.fusion == "norm_last"
        self.full_conv, self.full_scan = self._full(arch)
        self.half_conv, self.half_scan = self._half(arch, carry=True)

    def forward(self, x: Tensor) -> Tensor:
        """Map ``(B, H, W, C)`` to the same shape."""
        x, inner = self.project_in(x)
        inner, half = branch_off(self.half_conv, inner)
        full = self.full_scan(self.full_conv(inner), merge=True)
        half = self.half_scan(half, merge=self.merge_half)
        return self.project_out(x, full, half)

    def normalise(self, *scanned: Tensor | Size) -> tuple[Tensor, Tensor | None]:
        """Fuse the two scans to y, ``(B, H, W, D)``, and its mean over the map, ``(B, D)``."""
        return self.out_norm(*scanned)


def build_scan(dim: int, arch: BlockArch) -> Scan2D:
    """Make the scan whose routes and fusion ``arch`` has."""
    if not arch.half_routes:
        return SS2D(dim, arch)
    return MS2D(dim, arch) if arch.full_routes else HalfSS2D(dim, arch)
