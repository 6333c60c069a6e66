"""Linear layers of few rows in C++: hands tensors to the library by their addresses."""

import ctypes

import torch
from torch import Tensor

from mmmsv.compat.torch_versions import is_compiling

from ...bypass import is_profiled, is_unobserved
from ..torch import linear as pytorch
from .library import loaded_library


class _Linear(ctypes.Structure):
    """``Linear`` of linear.cpp."""

    _fields_ = [
        *((name, ctypes.c_int64) for name in ("rows", "inputs", "outputs", "threads")),
        *((name, ctypes.c_void_p) for name in ("x", "weight", "bias", "y", "scratch")),
    ]


def linear(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """Compute :func:`mmmsv.kernels.linear`.

    With a single image much of the time of a product goes into rearranging its weight. Where x has few rows, and
    nothing but the result is asked for, the library does it on the way; all else is PyTorch's.
    """
    if is_compiling() or not _is_for_library(x, weight, bias):
        return pytorch.linear(x, weight, bias)
    return product(x, weight, bias)


def product(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """Compute the product of a map and a weight in float32 by the library, however many rows there are."""
    x, weight = x.contiguous(), weight.contiguous()
    outputs, inputs = weight.shape
    y = x.new_empty(*x.shape[:-1], outputs)
    problem = _Linear(
        rows=x.numel() // inputs,
        inputs=inputs,
        outputs=outputs,
        threads=torch.get_num_threads(),
        x=x.data_ptr(),
        weight=weight.data_ptr(),
        bias=None if bias is None else bias.data_ptr(),
        y=y.data_ptr(),
    )
    loaded_library().linear.forward(problem, y)
    return y


def _is_for_library(x: Tensor, weight: Tensor, bias: Tensor | None) -> bool:
    return (
        x.dim() == 4
        and x.numel() <= loaded_library().linear_most_rows * x.shape[3]
        and pytorch.is_plain_product(x, weight, bias)
        and x.numel() * weight.shape[0] >= pytorch.SMALL
        and is_unobserved(x, weight, bias)
        and not is_profiled()
    )
