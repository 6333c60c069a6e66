"""Layers that several modules are made of.

Every map inside the network is channels-last, ``(B, H, W, C)``: linear layers and norms act on it as it is, and a
convolution sees it as a ``torch.channels_last`` tensor without a copy.
"""

from collections.abc import Callable
from contextvars import ContextVar
from functools import partial

import torch
from torch import Tensor, is_grad_enabled, nn
from torch.func import functional_call
from torch.jit import is_tracing
from torch.utils.checkpoint import checkpoint

from mmmsv.compat.torch_versions import get_autocast_dtype, is_autocast_enabled, is_compiling
from mmmsv.kernels import Activation, depthwise_conv, linear


class Linear(nn.Linear):
    """A linear layer on maps; arguments and weights of :class:`torch.nn.Linear`."""

    def forward(self, x: Tensor) -> Tensor:
        """Map ``(B, H, W, C_in)`` to ``(B, H, W, C_out)``."""
        return linear(x, self.weight, self.bias)


class HalvedLinear(Linear):
    """A linear layer without bias whose output is two maps; arguments and weights of :class:`torch.nn.Linear`.

    Each half is a product of its own: cut out of one product they would be strided, each would keep the memory of both,
    and a convolution would copy its own.
    """

    def forward(self, x: Tensor, half: int | None = None) -> Tensor:
        """Map ``(B, H, W, C_in)`` to half 0 or 1, ``(B, H, W, C_out / 2)``; to both in one when omitted."""
        return linear(x, self.weight if half is None else self.weight.chunk(2)[half])


class ChannelsLastConv2d(nn.Conv2d):
    """A 2-D convolution from and to channels-last maps; arguments and weights of :class:`torch.nn.Conv2d`."""

    def forward(self, x: Tensor) -> Tensor:
        """Map ``(B, H, W, C_in)`` to ``(B, H', W', C_out)``."""
        return super().forward(x.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)


class DepthwiseConv2d(nn.Conv2d):
    """A depthwise 2-D convolution of channels-last maps with an activation; weights of :class:`torch.nn.Conv2d`.

    ``activation(conv(x))``, or ``activation(x + conv(x))`` where ``residual`` is set.

    Args:
        dim: Channels.
        kernel_size: 3 or 7; the map is padded with zeros.
        stride: A side of H becomes ceil(H / stride) long.
        bias: Whether there is one.
        activation: ``'none'``, ``'silu'`` or ``'gelu'``.
        residual: Whether the input is added; with a stride of 1.
    """

    def __init__(
        self,
        dim: int,
        kernel_size: int,
        stride: int = 1,
        bias: bool = True,
        activation: Activation = "none",
        residual: bool = False,
    ) -> None:
        super().__init__(dim, dim, kernel_size, stride, kernel_size // 2, groups=dim, bias=bias)
        self.activation, self.residual = activation, residual

    def forward(self, x: Tensor) -> Tensor:
        """Map ``(B, H, W, C)`` to ``(B, H', W', C)``."""
        return depthwise_conv(x, self.weight, self.bias, self.stride[0], self.activation, self.residual)


_RECOMPUTED = ContextVar("_RECOMPUTED", default=False)  # whether what runs now is in a call of recompute


def recompute(module: nn.Module, function: Callable[..., Tensor], *inputs: Tensor | None) -> Tensor:
    """Call a function; in the backward pass, compute what that needs anew from the inputs, instead of keeping it.

    What stands behind the last tensor that is needed, a product by a matrix for instance, is not computed again. Nor is
    anything twice: within such a call another one keeps what it will. So does a program that is compiled or traced.

    Args:
        module: Whose weights the function takes. They are those of the forward pass in the backward pass, too, where
            ``torch.func.functional_call`` lent it others.
        function: One of its methods, or the module itself.
        inputs: Its arguments.

    Raises:
        RuntimeError: In the backward pass: a weight was changed in place since.
    """
    if not is_grad_enabled() or is_compiling() or is_tracing() or _RECOMPUTED.get():
        return function(*inputs)
    weights = _Weights(module)

    def marked(*inputs: Tensor | None) -> Tensor:
        before = _RECOMPUTED.set(True)
        try:
            return weights.call(function, *inputs)
        finally:
            _RECOMPUTED.reset(before)

    return checkpoint(marked, *inputs, use_reentrant=False)


class _Weights:
    """The weights that a module has now."""

    def __init__(self, module: nn.Module) -> None:
        self.module = module
        self.tensors = dict(module.named_parameters())
        self.versions = self._versions()

    def call(self, function: Callable[..., Tensor], *inputs: Tensor | None) -> Tensor:
        """Call a method of the module, or the module, with these weights, whichever it has meanwhile."""
        for name, before, now in zip(self.tensors, self.versions, self._versions(), strict=True):
            if before != now:
                raise RuntimeError(
                    f"{type(self.module).__name__}: its {name} was changed in place between the forward pass and the "
                    "backward pass, which computes part of the forward pass again; change weights after backward()"
                )
        present = dict(self.module.named_parameters())
        if all(present.get(name) is tensor for name, tensor in self.tensors.items()):
            return function(*inputs)
        named = {f"module.{name}": tensor for name, tensor in self.tensors.items()}
        return functional_call(_Method(self.module, function), named, inputs)

    def _versions(self) -> list[int]:
        # Tensors made in inference mode have none, and autograd lets nobody change them.
        return [0 if tensor.is_inference() else tensor._version for tensor in self.tensors.values()]


class _Method(nn.Module):
    """A method of a module, as a module."""

    def __init__(self, module: nn.Module, method: Callable[..., Tensor]) -> None:
        super().__init__()
        self.module = module
        self.forward = partial(method)  # which hides a method that is the module itself: it is a part already


def cast_once(x: Tensor) -> Tensor:
    """Cast what several products take as autocast would do for each, so that they keep one tensor and not two."""
    kind = x.device.type
    if x.dtype == torch.float32 and kind in ("cpu", "cuda") and is_autocast_enabled(kind):
        return x.to(get_autocast_dtype(kind))
    return x


def projection(in_dim: int, out_dim: int) -> nn.Linear:
    """Make a linear layer without bias, with the initial values of :func:`draw_projection`."""
    return draw_projection(Linear(in_dim, out_dim, bias=False))


def draw_projection(linear: nn.Linear) -> nn.Linear:
    """Draw the weight from a normal distribution of width 0.02, cut off at +-2; set the bias to 0; return the layer."""
    nn.init.trunc_normal_(linear.weight, std=0.02)
    if linear.bias is not None:
        nn.init.zeros_(linear.bias)
    return linear
