"""S6, the selective scan, as a layer over maps."""

import math

import torch
from torch import Tensor, nn

from mmmsv.kernels import Route, read_twice, scan2d

from .layers import Linear


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
        self.x_proj = Linear(dim, sets * sum(self.token_sizes), bias=False)
        # Plain parameters, no nn.Linear: an init_cfg that draws all linear layers again, as those of many classifiers
        # do, would set b_dt to 0, and with it every step to 0.69.
        self.dt_weight = nn.Parameter(torch.empty(sets, dim, dt_rank))
        self.dt_bias = nn.Parameter(torch.empty(sets, dim))
        self.A_log = nn.Parameter(torch.empty(sets, dim, state_size))
        self.skip = nn.Parameter(torch.empty(sets, dim))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw the initial values: steps log-uniform in [1e-3, 0.1], A = -(1, ..., N), skip weight 1.

        ``x_proj`` keeps what :class:`torch.nn.Linear` draws, uniform in ``+-D^-0.5``, as in the authors' code.
        """
        bound = self.dt_weight.shape[-1] ** -0.5
        nn.init.uniform_(self.dt_weight, -bound, bound)
        with torch.no_grad():
            step = torch.empty_like(self.dt_bias).uniform_(math.log(1e-3), math.log(0.1)).exp_().clamp_(min=1e-4)
            self.dt_bias.copy_(step + torch.log(-torch.expm1(-step)))  # the inverse of softplus
            self.A_log.copy_(torch.arange(1, self.A_log.shape[-1] + 1).log().expand_as(self.A_log))
            self.skip.fill_(1.0)

    def forward(self, x: Tensor, merge: bool) -> Tensor:
        """Scan ``(B, H, W, D)``; return the sum over the routes, or one map for each, ``(B, routes, H, W, D)``.

        The dtype is that of x, but float32 for a float16 x.
        """
        x, projected = read_twice(x)
        dt, B, C = self.project(projected)
        # The step, B and C are linear in x, so y grows with its fourth power: x of some hundreds gives y above 65504,
        # which is infinite in float16, and NaN after the norm that would have taken the size back.
        dtype = torch.float32 if x.dtype == torch.float16 else None
        A = self.decay_rate()
        return scan2d(x, dt, B, C, self.dt_weight, self.dt_bias, A, self.skip, self.routes, self.carry, merge, dtype)

    def project(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return dt, ``(B, H, W, sets, R)``, and B and C, ``(B, H, W, sets, N)``, of each token of ``(B, H, W, D)``."""
        dt, B, C = self.x_proj(x).unflatten(-1, (self.sets, -1)).split(self.token_sizes, dim=-1)
        return dt, B, C

    def decay_rate(self) -> Tensor:
        """Return A, ``(sets, D, N)``, in float32 or wider: rounded to half precision it is another time constant."""
        A_log = self.A_log if self.A_log.dtype == torch.float64 else self.A_log.float()
        return -A_log.exp()
