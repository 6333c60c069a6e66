"""Linear layers on maps: which of torch's own products is the fastest."""

import torch
from torch import Tensor
from torch.nn import functional

from .old_torch import is_autocast_enabled


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    r"""Compute :math:`x W^T + b` for each token of a map: :func:`torch.nn.functional.linear`, at times by another way.

    In float32 on CPUs torch leaves linear layers to MKL, and convolutions to oneDNN. oneDNN is as fast on Intel's
    processors and twice as fast on AMD's, forward and backward. So here such a layer is a convolution of 1 x 1, and
    where nothing but the result is asked for, oneDNN's product, which unlike the convolution leaves the weight as it
    lies in memory: with a single image, rearranging weights takes a fifth of the time of a model.

    Args:
        x: Map, ``(batch, H, W, C_in)``; with another number of axes it is torch's function.
        weight: ``(C_out, C_in)``.
        bias: ``(C_out,)``; none when omitted.

    Returns:
        ``(batch, H, W, C_out)``, in the dtype that torch's function has.
    """
    if not _is_left_to_mkl(x, weight):
        return functional.linear(x, weight, bias)
    if _is_only_computed(x, weight):
        return torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")
    return functional.conv2d(x.permute(0, 3, 1, 2), weight[:, :, None, None], bias).permute(0, 2, 3, 1)


def _is_left_to_mkl(x: Tensor, weight: Tensor) -> bool:
    return (
        x.device.type == "cpu"
        and x.dtype == weight.dtype == torch.float32
        and x.dim() == 4
        and torch.backends.mkldnn.is_available()
        and torch.backends.mkldnn.enabled
        and not is_autocast_enabled("cpu")
    )


def _is_only_computed(x: Tensor, weight: Tensor) -> bool:
    """Whether nobody needs to know oneDNN's op: no derivative, no program that is recorded, no counter of FLOPs."""
    return (
        not (torch.is_grad_enabled() and (x.requires_grad or weight.requires_grad))
        and not torch.compiler.is_compiling()
        and not torch.jit.is_tracing()
        and torch._C._len_torch_dispatch_stack() == 0
        and x.numel() > 0
    )
