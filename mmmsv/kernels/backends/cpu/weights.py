"""Weights as the library takes them: by their addresses, after a look at what they are."""

import ctypes

import torch
from torch import Tensor

from mmmsv.compat.torch_versions import get_autocast_dtype, is_autocast_enabled

from ...whole_block import Norm


class NotTakenError(Exception):
    """The library does not take what a layer has."""


class LayerNormWeights(ctypes.Structure):
    """``LayerNorm`` of moments.h."""

    _fields_ = [("weight", ctypes.c_void_p), ("bias", ctypes.c_void_p), ("eps", ctypes.c_double)]


class Addresses:
    """Tell where weights of a dtype lie in memory; collect them in ``tensors``."""

    def __init__(self, dtype: torch.dtype) -> None:
        self.dtype = dtype
        self.tensors: list[Tensor] = []

    def of(self, tensor: Tensor, *shape: int) -> int:
        """Return where a contiguous tensor of this shape lies.

        Raises:
            NotTakenError: It is another one.
        """
        # In this order: a sparse tensor has no strides to ask about.
        if not isinstance(tensor, Tensor) or tensor.layout != torch.strided:
            raise NotTakenError
        if tensor.dtype != self.dtype or not tensor.is_cpu or tensor.shape != shape or not tensor.is_contiguous():
            raise NotTakenError
        self.tensors.append(tensor)
        return tensor.data_ptr()

    def of_norm(self, norm: Norm, channels: int) -> tuple[int, int, float]:
        """Return the values of ``LayerNormWeights``.

        Raises:
            NotTakenError: It is no such norm.
        """
        if not isinstance(norm.eps, float):
            raise NotTakenError
        return self.of(norm.weight, channels), self.of(norm.bias, channels), norm.eps


def are_taken(maps: torch.dtype, weights: torch.dtype) -> bool:
    """Return whether all are float32, or all bfloat16, or maps are bfloat16 as autocast makes them."""
    if is_autocast_enabled("cpu"):
        products = get_autocast_dtype("cpu")
        return maps == products == torch.bfloat16 and weights in (torch.float32, products)
    return maps == weights and weights in (torch.float32, torch.bfloat16)
