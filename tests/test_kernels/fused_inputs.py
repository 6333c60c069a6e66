"""Inputs of the ops around the scans, and their results with gradients."""

import math

import pytest
import torch

from mmmsv.kernels.backends.cpu import library

CPU = torch.device("cpu")
needs_library = pytest.mark.skipif(
    library.why_not(CPU) is not None, reason="there is no C++ library here: only the twins would be compared"
)


def normal(*shape, dtype=torch.float64, seed=0):
    generator = torch.Generator().manual_seed(seed + sum(shape))
    return torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype)


def wide(dtype):
    return torch.promote_types(dtype, torch.float32)


def conv_inputs(size, kernel, bias=True, dtype=torch.float64):
    channels = size[-1]
    return (
        normal(*size, dtype=dtype),
        normal(channels, 1, kernel, kernel, dtype=wide(dtype)) / kernel,
        normal(channels, dtype=wide(dtype)) if bias else None,
    )


def merge_inputs(size, routes, stride, dtype=torch.float64):
    batch, height, width, channels = size
    half = (batch, routes, -(-height // stride), -(-width // stride), channels)
    return (
        normal(*size, dtype=dtype),
        normal(*half, dtype=dtype, seed=1),
        normal(channels, dtype=wide(dtype)),
        normal(channels, dtype=wide(dtype), seed=1),
    )


def results(function, tensors, dtype=None):
    """Return what ``function`` makes of the tensors, computed in ``dtype`` if given, and all gradients."""
    leaves = [None if each is None else each.detach().clone().requires_grad_() for each in tensors]
    return with_gradients(
        function(*(each if each is None or dtype is None else each.to(dtype) for each in leaves)), leaves
    )


def with_gradients(y, leaves):
    """Return y, or all results where there are several, and the gradients of the leaves."""
    ys = all_of(y)
    weights = [normal(*each.shape).to(each) for each in ys]
    return *ys, *torch.autograd.grad(ys, [each for each in leaves if each is not None], weights)


def all_of(y):
    return y if isinstance(y, tuple) else (y,)


def spread(weight):
    """Return a weight with gaps between its numbers."""
    return torch.stack((torch.full_like(weight, math.nan), weight), -1)[..., 1]
