"""Linear layers of few rows in C++: hands tensors to the library by their addresses."""

import ctypes

import torch
from torch import Tensor

from ...bypass import is_profiled
from ..torch import linear as pytorch
from .library import loaded_library


class _Linear(ctypes.Structure):
    """``Linear`` of linear.h."""

    _fields_ = [
        *(
            (name, ctypes.c_int64)
            for name in ("dtype", "weight_dtype", "rows", "inputs", "outputs", "activation", "threads")
        ),
        *((name, ctypes.c_void_p) for name in ("x", "weight", "bias", "residual", "y", "scratch")),
        ("taps", ctypes.c_int64),
    ]


def linear(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """Compute :func:`mmmsv.kernels.linear`."""
    return pytorch.linear(x, weight, bias, _fastest)


def _fastest(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """Compute the product where nothing but the result is asked for.

    With a single image much of the time of a product goes into rearranging its weight. Where x has few rows, the
    library does it on the way.
    """
    few = x.numel() <= loaded_library().linear_most_rows * x.shape[3]
    if not few or pytorch.is_small(x, weight) or is_profiled():
        return pytorch.onednn(x, weight, bias)
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
