"""The norms of maps by Triton kernels: chooses how they are launched.

Maps are read and written in their dtypes, and computed with in float32. Sums over tokens are made in parts, one for
each program, which torch adds up: no atomics, the same bits in every run.
"""

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ...arguments import LayerNorm, ceil_div
from .maps import SPAN, flat, optional, strides, whole_tokens

if TYPE_CHECKING:  # which imports Triton
    from .launch import Launch


def layer_norm(given: LayerNorm) -> tuple[Tensor, Tensor]:
    """Compute y, and the mean and inverse deviation of each token."""
    from .launch import launch
    from .norm_kernels import norm_forward

    y, moments = given.new_results()
    if y.numel():
        tensors = flat(given.x), given.weight.contiguous(), given.bias.contiguous(), y, moments
        launch(norm_forward, tensors, _prepare_forward, given.eps)
    return y, moments


def layer_norm_backward(
    given: LayerNorm, dy: Tensor, moments: Tensor, dy_again: Tensor | None = None, dx_again: Tensor | None = None
) -> tuple[Tensor, ...]:
    """Compute the gradients of x, weight and bias; those that others give y and x are added."""
    from .launch import launch
    from .norm_kernels import norm_backward

    x, weight = flat(given.x), given.weight.contiguous()
    dx = x.new_empty(x.shape)
    if not dy.numel():
        return dx, torch.zeros_like(weight), torch.zeros_like(weight)
    again = optional(dy_again, dy.dtype), optional(dx_again, x.dtype)
    parts = weight.new_empty(_programs(x), 2, x.shape[3])
    launch(norm_backward, (x, weight, moments, flat(dy), *again, dx, parts), _prepare_backward)
    dweight, dbias = parts.sum(0)
    return dx, dweight, dbias


def _prepare_forward(x: Tensor, weight: Tensor, bias: Tensor, y: Tensor, moments: Tensor, eps: float) -> "Launch":
    from .launch import Launch

    return Launch(_programs(x), (*strides(x, y), *_sizes(x), eps), whole_tokens(x, y))


def _prepare_backward(
    x: Tensor,
    weight: Tensor,
    moments: Tensor,
    dy: Tensor,
    dy_again: Tensor | None,
    dx_again: Tensor | None,
    dx: Tensor,
    parts: Tensor,
) -> "Launch":
    from .launch import Launch

    maps = (x, dy, dy_again, dx_again, dx)
    return Launch(_programs(x), (*strides(*maps), *_sizes(x)), whole_tokens(*maps))


def _programs(x: Tensor) -> int:
    return x.shape[0] * ceil_div(x.shape[1] * x.shape[2], SPAN)


def _sizes(x: Tensor) -> tuple[int, int, int]:
    return x.shape[1] * x.shape[2], x.shape[3], SPAN
