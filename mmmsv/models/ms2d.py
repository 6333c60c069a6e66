"""MS2D, the multi-scale 2-D selective scan of MSVMamba (arXiv 2405.14174), and its parts."""

import math

import torch
from torch import Tensor, nn
from torch.nn.functional import interpolate, linear, silu

from mmmsv.kernels import Route, scan2d

from .layers import ChannelsLastConv2d, projection


class S6(nn.Module):
    r"""The selective scan of a map with its parameter sets: makes the step, B and C of each token, then runs.

    .. math:: (dt, B, C) = W_x u, \quad \Delta = \mathrm{softplus}(W_{dt}\, dt + b_{dt}), \quad A = -e^{A_{\log}}

    and then :func:`mmmsv.kernels.scan2d`. The projection is pointwise: a token's step, B and C do not depend on the
    route that visits it, so :meth:`forward` projects each token of the map once for each set, however many routes
    there are.

    Args:
        dim: Channels D of the map.
        state_size: N, numbers that the state keeps for each channel.
        dt_rank: R, width of the low-rank step.
        routes: The routes over the map.
        carry: Whether they are one sequence with one parameter set, the state running on from the end of one route into
            the start of the next; otherwise each route has a set of its own and starts from 0.

    Source:
        Mamba, arXiv 2312.00752, Section 3.2; initial values of Section 3.6.
    """

    def __init__(self, dim: int, state_size: int, dt_rank: int, routes: tuple[Route, ...], carry: bool) -> None:
        super().__init__()
        self.routes, self.carry = routes, carry
        self.sets = sets = 1 if carry else len(routes)
        self.token_sizes = (dt_rank, state_size, state_size)
        self.x_proj = projection(dim, sets * sum(self.token_sizes))
        # Plain parameters, no nn.Linear: an init_cfg that draws all linear layers anew, as those of many classifiers
        # do, would set b_dt to 0, and with it every step to 0.69.
        self.dt_weight = nn.Parameter(torch.empty(sets, dim, dt_rank))
        self.dt_bias = nn.Parameter(torch.empty(sets, dim))
        self.A_log = nn.Parameter(torch.empty(sets, dim, state_size))
        self.skip = nn.Parameter(torch.empty(sets, dim))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Set the initial values: steps log-uniform in [1e-3, 0.1], A = -(1, ..., N), skip weight 1."""
        bound = self.dt_weight.shape[-1] ** -0.5
        nn.init.uniform_(self.dt_weight, -bound, bound)
        with torch.no_grad():
            step = torch.empty_like(self.dt_bias).uniform_(math.log(1e-3), math.log(0.1)).exp_().clamp_(min=1e-4)
            self.dt_bias.copy_(step + torch.log(-torch.expm1(-step)))  # the inverse of softplus
            self.A_log.copy_(torch.arange(1, self.A_log.shape[-1] + 1).log().expand_as(self.A_log))
            self.skip.fill_(1.0)

    def forward(self, x: Tensor, merge: bool) -> Tensor:
        """Scan ``(B, H, W, D)``; return the sum over the routes, or one map for each, ``(B, routes, H, W, D)``."""
        dt, B, C = self.x_proj(x).unflatten(-1, (self.sets, -1)).split(self.token_sizes, dim=-1)
        # At least float32: a decay rounded to half precision is another time constant.
        A = -self.A_log.to(torch.promote_types(self.A_log.dtype, torch.float32)).exp()
        return scan2d(x, dt, B, C, self.dt_weight, self.dt_bias, A, self.skip, self.routes, self.carry, merge)


class SqueezeExcite(nn.Module):
    """Weigh the channels by what the whole map holds: ``x * sigmoid(W_2 relu(W_1 mean(x)))``.

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
        """Map ``(B, H, W, C)`` to the same shape."""
        weight = self.expand(self.reduce(x.mean((1, 2), keepdim=True)).relu()).sigmoid()
        return x * weight


class MS2D(nn.Module):
    r"""Multi-scale 2-D selective scan: few routes over the full map, the others over a map of half the resolution.

    .. math::
        x, z &= W_{in}\, input, \qquad z = \mathrm{SiLU}(z) \\
        full &= \mathrm{SiLU}(\mathrm{DWConv}_{3\times3}(x)), \qquad
        half = \mathrm{SiLU}(\mathrm{DWConv}_{7\times7,\,stride\,2}(x)) \\
        y &= \mathrm{LN}\Big(\sum_{full\ routes} \mathrm{S6}(full)\Big)
             + \mathrm{upsample}\Big(\sum_{half\ routes} \mathrm{LN}(\mathrm{S6}(half))\Big) \\
        output &= W_{out}\,(\mathrm{SE}(y) \odot z)

    Each full-resolution route is a sequence with a parameter set of its own. The half-resolution routes are one
    sequence with one parameter set: the state runs on from the end of one route into the start of the next.

    Args:
        dim: Channels C of the input and of the output.
        state_size: N, numbers that a scan's state keeps for each channel.
        ssm_ratio: The scans work on D = ssm_ratio * C channels.
        full_routes: Routes over the full map.
        half_routes: Routes over the half-resolution map.
        se: Whether squeeze-and-excitation follows the scans.
        gate: Whether the gate z is made and applied.

    Source:
        MSVMamba, arXiv 2405.14174. An odd side of the map is rounded up in the half-resolution map.
    """

    def __init__(
        self,
        dim: int,
        state_size: int,
        ssm_ratio: float,
        full_routes: tuple[Route, ...],
        half_routes: tuple[Route, ...],
        se: bool,
        gate: bool,
    ) -> None:
        super().__init__()
        inner, dt_rank = round(ssm_ratio * dim), math.ceil(dim / 16)
        self.gate = gate
        self.in_proj = projection(dim, 2 * inner if gate else inner)
        self.full_conv = ChannelsLastConv2d(inner, inner, 3, padding=1, groups=inner)
        self.half_conv = ChannelsLastConv2d(inner, inner, 7, stride=2, padding=3, groups=inner)
        self.full_scan = S6(inner, state_size, dt_rank, full_routes, carry=False)
        self.half_scan = S6(inner, state_size, dt_rank, half_routes, carry=True)
        self.out_norm = nn.LayerNorm(inner)
        self.se = SqueezeExcite(inner) if se else nn.Identity()
        self.out_proj = projection(inner, dim)

    def forward(self, x: Tensor) -> Tensor:
        """Map ``(B, H, W, C)`` to the same shape."""
        x, z = self._project_in(x)
        full = silu(self.full_conv(x))
        half = silu(self.half_conv(x))
        full = self.out_norm(self.full_scan(full, merge=True))
        half = self.out_norm(self.half_scan(half, merge=False)).sum(1)
        y = self.se(full + _upsample(half, full.shape[1:3]))
        return self.out_proj(y if z is None else y * z)

    def _project_in(self, x: Tensor) -> tuple[Tensor, Tensor | None]:
        if not self.gate:
            return self.in_proj(x), None
        # Two products, not one cut in two: its halves would be strided, and each convolution would copy its own.
        to_x, to_z = self.in_proj.weight.chunk(2)
        return linear(x, to_x), silu(linear(x, to_z))


def _upsample(x: Tensor, size: tuple[int, int]) -> Tensor:
    return interpolate(x.permute(0, 3, 1, 2), size=size, mode="bilinear", align_corners=False).permute(0, 2, 3, 1)
