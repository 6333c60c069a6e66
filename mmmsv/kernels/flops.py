"""What the ops cost, for counters of FLOPs, which give the arguments of an op with shapes in the place of tensors."""

from math import prod
from typing import Any, NamedTuple

import torch

from mmmsv.compat.torch_versions import register_flop_formula

from . import ops  # noqa: F401  which defines torch.ops.mmmsv
from .arguments import ceil_div


class ScanSizes(NamedTuple):
    """Sizes of a scan.

    Args:
        pairs: Tokens times channels, of all routes.
        routes: Number of routes.
        sets: Number of parameter sets.
        rank: R of the low-rank step; 0 where the step is given.
        state: N.
        skip: Whether there is a skip weight, 0 or 1.
    """

    pairs: int
    routes: int
    sets: int
    rank: int
    state: int
    skip: int

    @classmethod
    def of(cls, *arguments: Any) -> "ScanSizes":
        """Read the sizes off the arguments of ``mmmsv::scan2d``."""
        x, _, _, _, W_dt, _, (sets, _, state), Dskip, route_codes, *_ = arguments
        routes = len(route_codes)
        pairs = prod(x) * (routes if len(x) == 4 else 1)
        return cls(pairs, routes, sets, W_dt[2] if W_dt else 0, state, int(Dskip is not None))

    @classmethod
    def of_sequences(cls, *arguments: Any) -> "ScanSizes":
        """Read the sizes off the arguments of ``mmmsv::selective_scan``."""
        u, _, (_, _, groups, state), _, _, _, D, *_ = arguments
        return cls(prod(u), groups, groups, 0, state, int(D is not None))

    @property
    def recurrence(self) -> int:
        """Operations of the recurrence, 9 L D N + L D a sequence (github.com/state-spaces/mamba, issue 110)."""
        return self.pairs * (9 * self.state + 1)


@register_flop_formula(torch.ops.mmmsv.selective_scan)
def _selective_scan(*arguments: Any, **_: object) -> int:
    return ScanSizes.of_sequences(*arguments).recurrence


@register_flop_formula(torch.ops.mmmsv.selective_scan_backward)
def _selective_scan_backward(dy: tuple, dlast: tuple, kept: tuple, *arguments: Any, **_: object) -> int:
    """Count as for a map."""
    sizes = ScanSizes.of_sequences(*arguments)
    return sizes.pairs * (23 * sizes.state + 8)


@register_flop_formula(torch.ops.mmmsv.scan2d)
def _scan2d(*arguments: Any, **_: object) -> int:
    """Count the recurrence, and 2 R for the step of each pair."""
    sizes = ScanSizes.of(*arguments)
    return sizes.recurrence + 2 * sizes.pairs * sizes.rank


@register_flop_formula(torch.ops.mmmsv.scan2d_backward)
def _scan2d_backward(dy: tuple, kept: tuple, *arguments: Any, **_: object) -> int:
    """Count 23 a state element (7 to recompute h, 4 for the reverse scan, 12 for the gradients), 8 and 6 R a pair."""
    sizes = ScanSizes.of(*arguments)
    return sizes.pairs * (23 * sizes.state + 8 + 6 * sizes.rank)


@register_flop_formula(torch.ops.mmmsv.depthwise_conv)
def _depthwise_conv(
    x: tuple[int, ...], weight: tuple[int, ...], bias: tuple | None, stride: int, *_: object, **__: object
) -> int:
    return 2 * x[0] * ceil_div(x[1], stride) * ceil_div(x[2], stride) * prod(weight)


@register_flop_formula(torch.ops.mmmsv.depthwise_conv_backward)
def _depthwise_conv_backward(dy: tuple, kept: tuple, *arguments: Any, **_: object) -> int:
    """Count what goes into the activation again, and the gradients of x and of the weight."""
    return 3 * _depthwise_conv(*arguments)
