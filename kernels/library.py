"""The op as torch sees it: schema, implementation, fake kernel, autograd and FLOP formula.

Backends stay out of sight here: an implementation asks :mod:`.dispatch` for one, so a new backend changes nothing in
this file, and `torch.compile`, `torch.export` and checkpointing see one op whatever computes it.
"""

import torch
from torch import Tensor
from torch.utils.flop_counter import register_flop_formula

from . import dispatch

_ARGUMENTS = "Tensor u, Tensor delta, Tensor A, Tensor B, Tensor C, Tensor? D, Tensor? delta_bias, bool delta_softplus"
torch.library.define("mmmsv::selective_scan", f"({_ARGUMENTS}) -> Tensor")
torch.library.define(
    "mmmsv::selective_scan_backward",
    f"(Tensor dy, {_ARGUMENTS}) -> (Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor)",
)


@torch.library.impl("mmmsv::selective_scan", "default")
def _forward(
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None,
    delta_bias: Tensor | None,
    delta_softplus: bool,
) -> Tensor:
    return dispatch.select().forward(u, delta, A, B, C, D, delta_bias, delta_softplus)


@torch.library.register_fake("mmmsv::selective_scan")
def _fake_forward(u: Tensor, *_: object) -> Tensor:
    return torch.empty_like(u)


@torch.library.impl("mmmsv::selective_scan_backward", "default")
def _backward(
    dy: Tensor,
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None,
    delta_bias: Tensor | None,
    delta_softplus: bool,
) -> tuple[Tensor, ...]:
    return dispatch.select().backward(dy, u, delta, A, B, C, D, delta_bias, delta_softplus)


@torch.library.register_fake("mmmsv::selective_scan_backward")
def _fake_backward(dy: Tensor, *arguments: Tensor | bool | None) -> tuple[Tensor, ...]:
    # A schema has no optional results: an empty tensor stands for the gradient of a weight that was not given.
    return tuple(dy.new_empty(0) if tensor is None else torch.empty_like(tensor) for tensor in arguments[:7])


def _setup_context(ctx: torch.autograd.function.FunctionCtx, inputs: tuple, output: Tensor) -> None:
    *tensors, ctx.delta_softplus = inputs
    ctx.save_for_backward(*tensors)


def _autograd(ctx: torch.autograd.function.FunctionCtx, dy: Tensor) -> tuple[Tensor | None, ...]:
    tensors = ctx.saved_tensors
    gradients = torch.ops.mmmsv.selective_scan_backward(dy, *tensors, ctx.delta_softplus)
    given = (None if tensor is None else gradient for tensor, gradient in zip(tensors, gradients, strict=True))
    return (*given, None)


def _no_second_derivative(ctx: torch.autograd.function.FunctionCtx, *_: Tensor) -> None:
    raise NotImplementedError("selective_scan has first derivatives only; this asks for a second one (double backward)")


torch.library.register_autograd("mmmsv::selective_scan", _autograd, setup_context=_setup_context)
torch.library.register_autograd("mmmsv::selective_scan_backward", _no_second_derivative)


@register_flop_formula(torch.ops.mmmsv.selective_scan)
def _forward_flops(u: tuple, delta: tuple, A: tuple, *_: object, **__: object) -> int:
    """9 L D N + L D operations a sequence, as published (github.com/state-spaces/mamba, issue 110)."""
    batch, channels, length = u
    return batch * length * channels * (9 * A[1] + 1)


@register_flop_formula(torch.ops.mmmsv.selective_scan_backward)
def _backward_flops(dy: tuple, u: tuple, delta: tuple, A: tuple, *_: object, **__: object) -> int:
    """23 a state element (7 to recompute h, 4 for the reverse scan, 12 for the gradients), 8 a token and channel."""
    batch, channels, length = u
    return batch * length * channels * (23 * A[1] + 8)
