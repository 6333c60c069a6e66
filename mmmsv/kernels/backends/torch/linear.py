"""Linear layers on maps, by the fastest of PyTorch's own products."""

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional

from mmmsv.compat.torch_versions import is_autocast_enabled, is_compiling, may_be_exporting

from ...bypass import PLAIN, is_transformed, is_unobserved
from ...registration import define_result_only

# Below so many multiply-adds MKL's product is the faster one: it has less to prepare.
_SMALL = 1 << 20
_LINEAR = functional.linear  # torch's own


def is_small(x: Tensor, weight: Tensor) -> bool:
    """Return whether MKL's product is the fastest one."""
    return x.numel() * weight.shape[0] < _SMALL


def onednn(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """Compute a plain product of a map in float32, of which nothing but the result is asked for."""
    if is_small(x, weight):
        return functional.linear(x, weight, bias)
    return torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")


def linear(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    product: Callable[[Tensor, Tensor, Tensor | None], Tensor] = onednn,
) -> Tensor:
    """Compute :func:`mmmsv.kernels.linear`.

    In float32 on CPUs torch leaves linear layers to MKL, and convolutions to oneDNN. On AMD's processors oneDNN is
    twice as fast, forward and backward. So here such a layer is a convolution of 1 x 1, and where nothing but the
    result is asked for, oneDNN's product, which unlike the convolution leaves the weight as it lies in memory: with a
    single image, rearranging weights takes a fifth of the time of a model. Another backend may give a product of its
    own in its place.
    """
    if not _is_for_onednn(x, weight, bias):
        return functional.linear(x, weight, bias)
    if not _is_only_result_asked(x, weight, bias):
        return functional.conv2d(x.permute(0, 3, 1, 2), weight[:, :, None, None], bias).permute(0, 2, 3, 1)
    return _compiled(x, weight, bias) if is_compiling() else product(x, weight, bias)


# What torch's compiler itself makes of oneDNN's product takes constants for weights.
_compiled = define_result_only(
    "onednn_linear", "Tensor x, Tensor weight, Tensor? bias", onednn, functional.linear, functional.linear
)


def _is_for_onednn(x: Tensor, weight: Tensor, bias: Tensor | None) -> bool:
    """Whether oneDNN could compute it; what is not as it should be stays with torch, which says so."""
    return (
        x.device.type == weight.device.type == "cpu"
        and x.dtype == weight.dtype == torch.float32
        and x.dim() == 4
        and weight.dim() == 2
        and x.shape[3] == weight.shape[1]
        and x.numel() > 0
        and (bias is None or _is_dense_vector(bias, weight.shape[0]))
        # A subclass, of quantised weights for instance, knows what a linear layer is, and not what ours is. (Of a
        # parameter the compiler of torch 2.1 does not tell the type.)
        and x.__class__ in PLAIN
        and weight.__class__ in PLAIN
        and not is_autocast_enabled("cpu")
        # A tool that counts calls of torch's function puts its own in its place.
        and functional.linear is _LINEAR
        and _has_onednn()
    )


def _is_dense_vector(bias: Tensor, size: int) -> bool:
    return bias.device.type == "cpu" and bias.dtype == torch.float32 and bias.shape == (size,) and bias.is_contiguous()


def _is_only_result_asked(x: Tensor, weight: Tensor, bias: Tensor | None) -> bool:
    if is_compiling():
        return not torch.is_grad_enabled() and _is_compiled_for_the_result()
    return is_unobserved(x, weight, bias)


@torch.compiler.assume_constant_result  # torch.compile itself does not know, or says that it exports whatever it does
def _is_compiled_for_the_result() -> bool:
    """Whether the program has no derivative and is not exported: an exported one keeps to ops known everywhere."""
    return not (may_be_exporting() or is_transformed())


@torch.compiler.assume_constant_result
def _has_onednn() -> bool:
    return torch.backends.mkldnn.is_available() and bool(torch.backends.mkldnn.enabled)
