"""Ops whose maps have two readers, and how autograd adds the gradients of both."""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from mmmsv.kernels import depthwise_conv, layer_norm

from .fused_inputs import conv_inputs, normal, wide
from .scan_inputs import assert_near


class Case(NamedTuple):
    """An op with its tensors and options; x, y, and y again have readers."""

    function: Callable[..., Tensor]
    tensors: Callable[[torch.dtype], tuple[Tensor, ...]]
    options: tuple[object, ...]

    def layer(self, tensors):
        return lambda x: self.function(x, *tensors[1:], *self.options)


def conv(size, kernel, *options, bias=True):
    return Case(depthwise_conv, lambda dtype: conv_inputs(size, kernel, bias, dtype), options)


def norm(size, *options):
    channels = size[-1]
    return Case(
        layer_norm,
        lambda dtype: (
            normal(*size, dtype=dtype),
            normal(channels, dtype=wide(dtype)),
            normal(channels, dtype=wide(dtype), seed=1),
        ),
        (1e-5, *options),
    )


CASES = {
    "conv_3x3": conv((2, 5, 4, 33), 3, 1, "silu"),
    "conv_3x3-residual": conv((1, 4, 7, 72), 3, 1, "gelu", True),
    "conv_3x3-no_activation": conv((2, 3, 5, 16), 3, 1, "none", True, bias=False),
    "conv_3x3-stride": conv((1, 5, 6, 18), 3, 2, "gelu", bias=False),
    "conv_7x7": conv((1, 4, 5, 20), 7, 1, "silu"),
    "conv_7x7-stride": conv((2, 5, 7, 24), 7, 2, "silu"),
    "conv_7x7-long_stride": conv((1, 9, 8, 8), 7, 7, "none"),
    "norm": norm((2, 5, 4, 33)),
    "norm-aligned": norm((3, 3, 23, 72)),
}


def plain_branch_off(layer, x):
    return x, layer(x)


def plain_read_twice(y):
    return y, y


def assert_same(ours, theirs, tolerance=1e-12):
    for one, other in zip(ours, theirs, strict=True):
        assert (one is None) == (other is None)
        if one is not None:
            assert one.dtype == other.dtype
            assert_near(one, other, tolerance)
