"""How inputs and results lie in memory."""

import torch
from torch import Tensor


def last_axis_innermost(tensor: Tensor) -> Tensor:
    """Return ``tensor`` with its last axis innermost in memory, as kernels read it: usually the tensor itself."""
    return tensor if tensor.stride(-1) == 1 or tensor.shape[-1] == 1 else tensor.contiguous()


def laid_out_as(like: Tensor, value: Tensor) -> Tensor:
    """Return ``value`` as ``torch.empty_like(like)`` would be: usually itself, unless it is part of another tensor."""
    whole = value.untyped_storage().nbytes() == value.numel() * value.element_size()
    usable = whole and value.dtype == like.dtype
    if usable and value.stride() == like.stride():
        return value
    laid_out = torch.empty_like(like)
    strides = zip(value.shape, value.stride(), laid_out.stride(), strict=True)
    if usable and all(size == 1 or ours == wanted for size, ours, wanted in strides):
        return value.as_strided(laid_out.shape, laid_out.stride())  # strides of axes of one element are normalised
    return laid_out.copy_(value)
