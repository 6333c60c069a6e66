"""Linear layers on maps: which of torch's own products is the fastest."""

import torch
from torch import Tensor
from torch.nn import functional

from .checks import PLAIN, is_only_computed
from .old_torch import is_autocast_enabled, is_compiling, is_exporting

# Below so many multiply-adds MKL's product is the faster one: it has less to prepare.
_SMALL = 1 << 20


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    r"""Compute :math:`x W^T + b` for each token of a map: :func:`torch.nn.functional.linear`, at times by another way.

    In float32 on CPUs torch leaves linear layers to MKL, and convolutions to oneDNN. On AMD's processors oneDNN is
    twice as fast, forward and backward. So here such a layer is a convolution of 1 x 1, and where nothing but the
    result is asked for, oneDNN's product, which unlike the convolution leaves the weight as it lies in memory: with a
    single image, rearranging weights takes a fifth of the time of a model.

    Args:
        x: Map, ``(batch, H, W, C_in)``; with another number of axes it is torch's function.
        weight: ``(C_out, C_in)``.
        bias: ``(C_out,)``; none when omitted.

    Returns:
        ``(batch, H, W, C_out)``, in the dtype that torch's function has.
    """
    if not _is_left_to_mkl(x, weight, bias):
        return functional.linear(x, weight, bias)
    if not _is_only_result_asked(x, weight, bias):
        return functional.conv2d(x.permute(0, 3, 1, 2), weight[:, :, None, None], bias).permute(0, 2, 3, 1)
    return torch.ops.mmmsv.linear(x, weight, bias) if is_compiling() else _onednn(x, weight, bias)


def _onednn(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    if x.numel() * weight.shape[0] < _SMALL:
        return functional.linear(x, weight, bias)
    return torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")


# For compiled programs: what torch's compiler makes of oneDNN's product takes constants for weights.
torch.library.define("mmmsv::linear", "(Tensor x, Tensor weight, Tensor? bias) -> Tensor")
torch.library.impl("mmmsv::linear", "CPU", _onednn)
torch.library.impl("mmmsv::linear", "Meta", functional.linear)


def _is_left_to_mkl(x: Tensor, weight: Tensor, bias: Tensor | None) -> bool:
    """Whether torch would ask MKL; what is not as it should be stays with torch, which says so."""
    return (
        x.device.type == "cpu"
        and x.dtype == weight.dtype == torch.float32
        and x.dim() == 4
        and weight.dim() == 2
        and x.shape[3] == weight.shape[1]
        and x.numel() > 0
        and (bias is None or (bias.dtype == torch.float32 and bias.shape == weight.shape[:1] and bias.is_contiguous()))
        # A subclass, of quantised weights for instance, knows what a linear layer is, and not what ours is.
        and (is_compiling() or (type(x) in PLAIN and type(weight) in PLAIN))
        and not is_autocast_enabled("cpu")
        and _has_onednn()
    )


def _is_only_result_asked(x: Tensor, weight: Tensor, bias: Tensor | None) -> bool:
    if is_compiling():
        return not torch.is_grad_enabled() and not _runs_elsewhere()
    return is_only_computed(x, weight, bias)


@torch.compiler.assume_constant_result  # asked by itself, torch.compile answers is_exporting with True
def _runs_elsewhere() -> bool:
    """Whether a program is exported; it then keeps to ops that are known everywhere."""
    return is_exporting()


@torch.compiler.assume_constant_result
def _has_onednn() -> bool:
    return torch.backends.mkldnn.is_available() and torch.backends.mkldnn.enabled
