"""The 2-D selective scans: SS2D of VMamba (arXiv 2401.10166) and MS2D of MSVMamba (arXiv 2405.14174)."""

import math

from torch import Tensor, nn

from mmmsv.kernels import gate, merge_scales, upsample

from .arch import BlockArch
from .layers import DepthwiseConv2d, HalvedLinear, cast_once, draw_projection, projection, recompute
from .s6 import S6


class SqueezeExcite(nn.Module):
    """Make weights for the channels of what the whole map holds: ``sigmoid(W_2 relu(W_1 mean(x)))``.

    Args:
        dim: Channels.
        reduction: How much narrower the layer between is.

    Source:
        Squeeze-and-Excitation, arXiv 1709.01507, without biases.
    """

    def __init__(self, dim: int, reduction: int = 8) -> None:
        super().__init__()
        self.reduce = projection(dim, dim // reduction)
        self.expand = projection(dim // reduction, dim)

    def forward(self, x: Tensor) -> Tensor:
        """Map ``(B, H, W, C)`` to ``(B, C)``."""
        return self.expand(self.reduce(x.mean((1, 2))).relu()).sigmoid()


class Scan2D(nn.Module):
    r"""What all 2-D scans have around their S6: the projections, the norm, the gate and squeeze-and-excitation.

    .. math::
        x, z = W_{in}\, input, \qquad output = W_{out}\,(y \odot \mathrm{SE}(y) \odot \mathrm{SiLU}(z))

    and the classes below make y of x.

    Args:
        dim: Channels C of the input and of the output.
        arch: Settings: ``state_size`` N, ``ssm_ratio`` (D = ssm_ratio * C channels inside), routes, and so on.
    """

    def __init__(self, dim: int, arch: BlockArch) -> None:
        super().__init__()
        self.inner, self.dt_rank = round(arch.ssm_ratio * dim), math.ceil(dim / 16)
        self.gated = arch.gate
        self.in_proj = (
            draw_projection(HalvedLinear(dim, 2 * self.inner, bias=False))
            if self.gated
            else projection(dim, self.inner)
        )
        self.out_norm = nn.LayerNorm(self.inner)
        self.se = SqueezeExcite(self.inner) if arch.se else None
        self.out_proj = projection(self.inner, dim)

    def forward(self, x: Tensor) -> Tensor:
        """Map ``(B, H, W, C)`` to the same shape."""
        x = cast_once(x)
        inner = self._half_of_in_proj(0, x) if self.gated else self.in_proj(x)
        # While training, z, y and what the output's projection takes are made again in the backward pass.
        return recompute(self, self._project_out, x, *self.scan(inner))

    def _project_out(self, x: Tensor, *scanned: Tensor) -> Tensor:
        y = self.fuse(*scanned)
        z = self._half_of_in_proj(1, x) if self.gated else None
        return self.out_proj(gate(y, z, None if self.se is None else self.se(y)))

    def scan(self, x: Tensor) -> tuple[Tensor, ...]:
        """Scan ``(B, H, W, D)``; return what :meth:`fuse` takes."""
        raise NotImplementedError(f"{type(self).__name__} does not say how it scans")

    def fuse(self, *scanned: Tensor) -> Tensor:
        """Make y, ``(B, H, W, D)``, of what was scanned."""
        raise NotImplementedError(f"{type(self).__name__} does not say how it fuses what was scanned")

    def _half_of_in_proj(self, half: int, x: Tensor) -> Tensor:
        if isinstance(self.in_proj, HalvedLinear):
            return self.in_proj(x, half=half)
        # What an adapter has put in its place, as for LoRA, knows of no halves.
        return self.in_proj(x).chunk(2, -1)[half]

    def _full(self, arch: BlockArch) -> tuple[DepthwiseConv2d, S6]:
        """Make what a map of full resolution goes through."""
        conv = DepthwiseConv2d(self.inner, 3, bias=arch.conv_bias, activation="silu")
        return conv, S6(self.inner, arch.state_size, self.dt_rank, arch.full_routes, carry=False)

    def _half(self, arch: BlockArch, carry: bool) -> tuple[DepthwiseConv2d, S6]:
        """Make what a map of lower resolution comes from and goes through; an odd side is rounded up in it."""
        conv = DepthwiseConv2d(self.inner, 7, arch.half_stride, bias=arch.conv_bias, activation="silu")
        return conv, S6(self.inner, arch.state_size, self.dt_rank, arch.half_routes, carry)


class SS2D(Scan2D):
    r"""2-D selective scan: several routes over the map, each a sequence with a parameter set of its own.

    .. math:: y = \mathrm{LN}\Big(\sum_{routes} \mathrm{S6}(\mathrm{SiLU}(\mathrm{DWConv}_{3\times3}(x)))\Big)

    Source:
        VMamba, arXiv 2401.10166.
    """

    def __init__(self, dim: int, arch: BlockArch) -> None:
        super().__init__(dim, arch)
        self.full_conv, self.full_scan = self._full(arch)

    def scan(self, x: Tensor) -> tuple[Tensor]:
        """Scan ``(B, H, W, D)``; return the sum over the routes, of the same shape."""
        return (self.full_scan(self.full_conv(x), merge=True),)

    def fuse(self, full: Tensor) -> Tensor:
        """Make y, ``(B, H, W, D)``, of the sum over the routes."""
        return self.out_norm(full)


class HalfSS2D(Scan2D):
    r"""SS2D over a map of lower resolution, (F, H) = (0, 4) of MSVMamba's ablation.

    .. math:: y = \mathrm{upsample}\Big(\mathrm{LN}\Big(\sum_{routes}
        \mathrm{S6}(\mathrm{SiLU}(\mathrm{DWConv}_{7\times7,\,stride}(x)))\Big)\Big)

    Source:
        MSVMamba, arXiv 2405.14174, Table 5. Each route has a parameter set of its own; the norm stands where SS2D's
        does, which makes no difference to nearest neighbours.
    """

    def __init__(self, dim: int, arch: BlockArch) -> None:
        super().__init__(dim, arch)
        self.upsampling = "bilinear" if arch.fusion == "norm_first" else "nearest"
        self.half_conv, self.half_scan = self._half(arch, carry=False)

    def scan(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Scan ``(B, H, W, D)``; return the sum over the routes, ``(B, h, w, D)``, and x, whose size counts."""
        return self.half_scan(self.half_conv(x), merge=True), x

    def fuse(self, half: Tensor, full: Tensor) -> Tensor:
        """Make y, ``(B, H, W, D)``, of the sum over the routes, in the size of a full map."""
        return upsample(self.out_norm(half), full.shape[1:3], self.upsampling)


class MS2D(Scan2D):
    r"""Multi-scale 2-D selective scan: few routes over the full map, the others over a map of half the resolution.

    .. math::
        full &= \mathrm{SiLU}(\mathrm{DWConv}_{3\times3}(x)), \qquad
        half = \mathrm{SiLU}(\mathrm{DWConv}_{7\times7,\,stride\,2}(x)) \\
        y &= \mathrm{LN}\Big(\sum_{full\ routes} \mathrm{S6}(full)\Big)
             + \mathrm{upsample}\Big(\sum_{half\ routes} \mathrm{LN}(\mathrm{S6}(half))\Big)

    Each full-resolution route is a sequence with a parameter set of its own. The half-resolution routes are one
    sequence with one parameter set: the state runs on from the end of one route into the start of the next.
    Upsampling is bilinear.

    Source:
        MSVMamba, arXiv 2405.14174.
    """

    def __init__(self, dim: int, arch: BlockArch) -> None:
        super().__init__(dim, arch)
        self.full_conv, self.full_scan = self._full(arch)
        self.half_conv, self.half_scan = self._half(arch, carry=True)

    def scan(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Scan ``(B, H, W, D)``; return the sum over full routes and each half route, ``(B, routes, h, w, D)``."""
        full = self.full_scan(self.full_conv(x), merge=True)
        half = self.half_scan(self.half_conv(x), merge=False)
        return full, half

    def fuse(self, full: Tensor, half: Tensor) -> Tensor:
        """Make y, ``(B, H, W, D)``, of the sum over full routes and of each half route."""
        return merge_scales(full, half, self.out_norm.weight, self.out_norm.bias, self.out_norm.eps, norm_first=True)


class MS2DNormLast(MS2D):
    r"""Multi-scale 2-D selective scan with one norm behind the sum of both resolutions.

    .. math::
        y = \mathrm{LN}\Big(\sum_{full\ routes} \mathrm{S6}(full)
            + \mathrm{upsample}\Big(\sum_{half\ routes} \mathrm{S6}(half)\Big)\Big)

    with the parts of :class:`MS2D`. Upsampling takes the nearest neighbour.

    Source:
        MSVMamba, NeurIPS 2024.
    """

    def scan(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Scan ``(B, H, W, D)``; return the sums over the full and over the half routes, ``(B, 1, h, w, D)``."""
        full = self.full_scan(self.full_conv(x), merge=True)
        half = self.half_scan(self.half_conv(x), merge=True).unsqueeze(1)
        return full, half

    def fuse(self, full: Tensor, half: Tensor) -> Tensor:
        """Make y, ``(B, H, W, D)``, of both sums."""
        return merge_scales(full, half, self.out_norm.weight, self.out_norm.bias, self.out_norm.eps, norm_first=False)


def build_scan(dim: int, arch: BlockArch) -> Scan2D:
    """Make the scan whose routes and fusion ``arch`` has."""
    if not arch.half_routes:
        return SS2D(dim, arch)
    if not arch.full_routes:
        return HalfSS2D(dim, arch)
    return MS2D(dim, arch) if arch.fusion == "norm_first" else MS2DNormLast(dim, arch)
