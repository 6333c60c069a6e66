"""The scans as torch sees them: schema, implementation, fake kernel and FLOP formula.

Backends stay out of sight here: an implementation asks :mod:`.dispatch` for one, so a new backend changes nothing in
this file, and `torch.compile`, `torch.export` and checkpointing see one op whatever computes it.
"""

import math
from collections.abc import Callable

import torch
from torch import Tensor

from mmmsv.compat.torch_versions import register_flop_formula

from . import dispatch
from .registration import define
from .scan_arguments import Scan1d, Scan2d

_ARGUMENTS_1D = (
    "Tensor u, Tensor delta, Tensor A, Tensor B, Tensor C, Tensor? D, Tensor? delta_bias, bool delta_softplus"
)
_ARGUMENTS_2D = (
    "Tensor x, Tensor dt, Tensor B, Tensor C, Tensor W_dt, Tensor b_dt, Tensor A, Tensor Dskip, "
    "int[] route_codes, bool carry, bool merge"
)


def _define(
    name: str, arguments: str, kind: type[Scan1d] | type[Scan2d], fake_y: Callable[[Scan1d | Scan2d], Tensor]
) -> Callable[..., Tensor]:
    """Register ``mmmsv::{name}`` and ``mmmsv::{name}_backward``; return the function that calls it.

    Args:
        name: Of the op, and of the backends' method; the method of the backward pass has ``_backward`` behind it.
        arguments: Their schema, tensors first.
        kind: The tuple that backends are given them as.
        fake_y: Makes an uninitialised y.
    """

    def forward(*values: object) -> tuple[Tensor, Tensor]:
        scan = kind(*values)
        y, states = getattr(dispatch.select(scan.tensors[0].device), name)(scan)
        # Flat: as an axis of its own, a number of chunks that happens to be 1 would be a special case to torch.export.
        return y, states.flatten()

    def backward(dy: Tensor, states: Tensor, *values: object) -> tuple[Tensor, ...]:
        scan = kind(*values)
        compute = getattr(dispatch.select(scan.tensors[0].device), f"{name}_backward")
        return compute(scan, dy, states.view(scan.states_shape))

    def fake_forward(*values: object) -> tuple[Tensor, Tensor]:
        scan = kind(*values)
        return fake_y(scan), scan.A.new_empty(math.prod(scan.states_shape))

    return define(name, arguments, forward, backward, fake_forward)


selective_scan = _define("selective_scan", _ARGUMENTS_1D, Scan1d, lambda scan: torch.empty_like(scan.u))
scan2d = _define("scan2d", _ARGUMENTS_2D, Scan2d, lambda scan: scan.x.new_empty(scan.y_shape))


@register_flop_formula(torch.ops.mmmsv.selective_scan)
def _flops_1d(u: tuple, delta: tuple, A: tuple, *_: object, **__: object) -> int:
    """9 L D N + L D operations a sequence, as published (github.com/state-spaces/mamba, issue 110)."""
    batch, channels, length = u
    return batch * length * channels * (9 * A[1] + 1)


@register_flop_formula(torch.ops.mmmsv.selective_scan_backward)
def _backward_flops_1d(dy: tuple, states: tuple, u: tuple, delta: tuple, A: tuple, *_: object, **__: object) -> int:
    """23 a state element (7 to recompute h, 4 for the reverse scan, 12 for the gradients), 8 a token and channel."""
    batch, channels, length = u
    return batch * length * channels * (23 * A[1] + 8)


def _pairs(x: tuple, route_codes: list[int]) -> int:
    batch, height, width, channels = x
    return batch * height * width * channels * len(route_codes)


@register_flop_formula(torch.ops.mmmsv.scan2d)
def _flops_2d(
    x: tuple,
    dt: tuple,
    B: tuple,
    C: tuple,
    W_dt: tuple,
    b_dt: tuple,
    A: tuple,
    Dskip: tuple,
    route_codes: list[int],
    *_: object,
    **__: object,
) -> int:
    """Those of the 1-D op for each route, and 2 R a token, channel and route for the step."""
    return _pairs(x, route_codes) * (9 * A[2] + 1 + 2 * W_dt[2])


@register_flop_formula(torch.ops.mmmsv.scan2d_backward)
def _backward_flops_2d(dy: tuple, states: tuple, *arguments: object, **__: object) -> int:
    """Those of the 1-D op for each route, and 6 R: the step again, and the gradients of dt and of W_dt."""
    x, _, _, _, W_dt, _, A, _, route_codes, *_ = arguments
    return _pairs(x, route_codes) * (23 * A[2] + 8 + 6 * W_dt[2])
