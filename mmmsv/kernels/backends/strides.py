"""How results and inputs lie in memory: what the backends with kernels of their own share."""

import torch
from torch import Tensor


def last_axis_innermost(tensor: Tensor) -> Tensor:
    """Return ``tensor`` with its last axis innermost in memory, as kernels read it: itself, as a rule."""
    return tensor if tensor.stride(-1) == 1 or tensor.shape[-1] == 1 else tensor.contiguous()


def laid_out_as(like: Tensor, value: Tensor) -> Tensor:
    """Return ``value`` in the dtype and layout of ``like``: itself, as a rule, unless it is part of another tensor."""
    whole = value.untyped_storage().nbytes() == value.numel() * value.element_size()
    if whole and value.dtype == like.dtype and value.stride() == like.stride():
        return value
    return torch.empty_like(like).copy_(value)


def ceil_div(count: int, by: int) -> int:
    return -(-count // by)
