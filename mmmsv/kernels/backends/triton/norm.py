"""The norms of maps by Triton kernels: chooses how they are launched.

Maps are read and written in their dtypes, and computed with in float32. Sums over tokens are made in parts, one for
each program, which torch adds up: no atomics, the same bits in every run.
"""

import torch
from torch import Tensor

from ...arguments import LayerNorm, ceil_div
from .maps import SPAN, flat, optional, strides, whole_tokens


def layer_norm(given: LayerNorm) -> tuple[Tensor, Tensor]:
    """Compute y, and the mean and inverse deviation of each token."""
    from .norm_kernels import norm_forward

    y, moments = given.new_results()
    x, weight, bias = flat(given.x), given.weight.contiguous(), given.bias.contiguous()
    if y.numel():
        with torch.cuda.device_of(x):
            norm_forward[_grid(x)](
                *(x, weight, bias, y, moments, *strides(x), *strides(y), *_sizes(x), given.eps),
                **whole_tokens(x, y),
            )
    return y, moments


def layer_norm_backward(
    given: LayerNorm, dy: Tensor, moments: Tensor, dy_again: Tensor | None = None, dx_again: Tensor | None = None
) -> tuple[Tensor, ...]:
    """Compute the gradients of x, weight and bias; those that others give y and x are added."""
    from .norm_kernels import norm_backward

    x, weight, dy = flat(given.x), given.weight.contiguous(), flat(dy)
    dy_again, dx_again = optional(dy_again, dy.dtype), optional(dx_again, x.dtype)
    dx = x.new_empty(x.shape)
    if not dy.numel():
        return dx, torch.zeros_like(weight), torch.zeros_like(weight)
    parts = weight.new_empty(x.shape[0] * ceil_div(x.shape[1] * x.shape[2], SPAN), 2, x.shape[3])
    with torch.cuda.device_of(x):
        norm_backward[_grid(x)](
            *(x, weight, moments, dy, dy_again, dx_again, dx, parts),
            *(*strides(x), *strides(dy), *strides(dy_again), *strides(dx_again), *strides(dx), *_sizes(x)),
            **whole_tokens(x, dy, dx, dy_again, dx_again),
        )
    return dx, parts[:, 0].sum(0), parts[:, 1].sum(0)


def _grid(x: Tensor) -> tuple[int]:
    return (x.shape[0] * ceil_div(x.shape[1] * x.shape[2], SPAN),)


def _sizes(x: Tensor) -> tuple[int, int, int]:
    return x.shape[1] * x.shape[2], x.shape[3], SPAN
