"""How an op with a backward pass is made known to torch: schema, implementation, fake kernel, autograd and vmap.

By dispatch key, as C++ extensions register theirs: of torch's ways, the one that has been the same since 2.1.
"""

from collections.abc import Callable
from typing import NoReturn

import torch
from torch import Tensor
from torch.autograd import Function, forward_ad
from torch.autograd.function import FunctionCtx

from .argument_checks import is_only_computed

_LIBRARY = torch.library.Library("mmmsv", "DEF")


def define(
    name: str,
    arguments: str,
    forward: Callable[..., tuple[Tensor, Tensor]],
    backward: Callable[..., tuple[Tensor, ...]],
    fake_forward: Callable[..., tuple[Tensor, Tensor]],
) -> Callable[..., Tensor]:
    """Register ``mmmsv::{name}`` and ``mmmsv::{name}_backward``.

    Args:
        name: Of the op.
        arguments: Its schema, tensors first.
        forward: Computes, from these arguments, y and what is kept for the backward pass beside the tensors.
        backward: Computes, from dy, what was kept, and the arguments, the gradients of all tensors; an empty tensor
            where one was not given.
        fake_forward: As ``forward``, without computing.

    Returns:
        A function of the arguments that returns y, past torch's dispatcher where nobody looks on: of a call on a small
        map, half the time is the way through it.
    """
    count = arguments.count("Tensor")
    backward_name = f"{name}_backward"
    _LIBRARY.define(f"{name}({arguments}) -> (Tensor y, Tensor kept)")
    _LIBRARY.define(f"{backward_name}(Tensor dy, Tensor kept, {arguments}) -> ({', '.join(['Tensor'] * count)})")
    op, backward_op = (getattr(torch.ops.mmmsv, each).default for each in (name, backward_name))

    def fake_backward(dy: Tensor, kept: Tensor, *values: object) -> tuple[Tensor, ...]:
        # A schema has no optional results: an empty tensor stands for the gradient of a weight that was not given.
        return tuple(dy.new_empty(0) if value is None else torch.empty_like(value) for value in values[:count])

    class Differentiable(Function):
        @staticmethod
        def forward(ctx: FunctionCtx, *values: object) -> tuple[Tensor, Tensor]:
            with torch._C._AutoDispatchBelowAutograd():
                y, kept = op(*values)
            ctx.options = values[count:]
            ctx.save_for_backward(kept, *values[:count])
            ctx.set_materialize_grads(False)
            ctx.mark_non_differentiable(kept)
            return y, kept

        @staticmethod
        def backward(ctx: FunctionCtx, dy: Tensor | None, _: None) -> tuple[Tensor | None, ...]:
            if dy is None:
                return (None,) * (count + len(ctx.options))
            kept, *tensors = ctx.saved_tensors
            gradients = backward_op(dy, kept, *tensors, *ctx.options)
            given = (None if tensor is None else gradient for tensor, gradient in zip(tensors, gradients, strict=True))
            return (*given, *(None for _ in ctx.options))

    class DifferentiableOnce(Function):
        @staticmethod
        def forward(ctx: FunctionCtx, *values: object) -> tuple[Tensor, ...]:
            with torch._C._AutoDispatchBelowAutograd():
                return backward_op(*values)

        @staticmethod
        def backward(ctx: FunctionCtx, *_: Tensor) -> NoReturn:
            raise NotImplementedError(
                f"{name} has first derivatives only; this asks for a second one (double backward)"
            )

    def no_vmap(*_: object) -> NoReturn:
        raise NotImplementedError(
            f"{name} does not work under torch.func.vmap; it takes a batch: put the axis there, without vmap"
        )

    for each, compute, fake, differentiable in (
        (op, forward, fake_forward, type(name, (Differentiable,), {})),
        (backward_op, backward, fake_backward, type(backward_name, (DifferentiableOnce,), {})),
    ):
        _LIBRARY.impl(each, compute, "CompositeExplicitAutograd")
        _LIBRARY.impl(each, fake, "Meta")
        _LIBRARY.impl(each, _with_gradients(each, differentiable), "Autograd")
        _LIBRARY.impl(each, no_vmap, "FuncTorchBatched")

    def call(*values: object) -> Tensor:
        # A profile shows only what comes through the dispatcher.
        past = is_only_computed(*values[:count]) and not torch.autograd._profiler_enabled()
        y, _ = forward(*values) if past else op(*values)
        return y

    return call


def define_for_the_result(
    name: str,
    arguments: str,
    forward: Callable[..., Tensor],
    fake_forward: Callable[..., Tensor],
    instead: Callable[..., Tensor],
) -> torch._ops.OpOverload:
    """Register ``mmmsv::{name}``, whose result alone is of interest.

    Args:
        name: Of the op.
        arguments: Its schema.
        forward: Computes, from these arguments, the result.
        fake_forward: As ``forward``, without computing.
        instead: Computes the same with ops of torch, where derivatives are asked for, or under vmap.
    """
    _LIBRARY.define(f"{name}({arguments}) -> Tensor")
    op = getattr(torch.ops.mmmsv, name).default

    def without_derivatives(*values: Tensor | None) -> Tensor:
        if _gradients_are_asked_for(values) or forward_ad._current_level >= 0:
            return instead(*values)
        with torch._C._AutoDispatchBelowAutograd():
            return op(*values)

    _LIBRARY.impl(op, forward, "CPU")
    _LIBRARY.impl(op, fake_forward, "Meta")
    _LIBRARY.impl(op, without_derivatives, "Autograd")
    _LIBRARY.impl(op, instead, "FuncTorchBatched")
    return op


def _gradients_are_asked_for(values: tuple[object, ...]) -> bool:
    return torch.is_grad_enabled() and any(isinstance(value, Tensor) and value.requires_grad for value in values)


def _with_gradients(op: torch._ops.OpOverload, function: type[Function]) -> Callable[..., tuple]:
    """Return what ``op`` does where autograd looks on: ``function``; ``op`` alone where no gradient is asked for."""

    def run(*values: object) -> tuple[Tensor, ...]:
        if _gradients_are_asked_for(values):
            return function.apply(*values)
        with torch._C._AutoDispatchBelowAutograd():
            return op(*values)

    return run
