"""Compute activations again in the backward pass instead of keeping them, whatever the layers compute."""

from collections.abc import Callable
from contextvars import ContextVar
from functools import wraps

from torch import Size, Tensor, is_grad_enabled, nn
from torch.func import functional_call
from torch.jit import is_tracing
from torch.utils.checkpoint import checkpoint

from mmmsv.compat.torch_versions import is_compiling

_RECOMPUTED = ContextVar("_RECOMPUTED", default=False)  # whether the current code runs within a call of recompute


class RecomputingModule(nn.Module):
    """A module some of whose methods are :func:`recomputed`; where ``recompute`` is False, they keep what they need.

    None leaves it to each method: on a CPU a fresh map costs about as much as what is cheap to compute again; on a GPU
    computing again moves 10 % more bytes in a training step (docs/speed.md).
    """

    recompute: bool | None = None


def recomputed(on_cpu: bool) -> Callable[[Callable[..., Tensor]], Callable[..., Tensor]]:
    """Call a method of a :class:`RecomputingModule` through :func:`recompute`.

    Args:
        on_cpu: Whether that is the default on a CPU.
    """

    def decorate(method: Callable[..., Tensor]) -> Callable[..., Tensor]:
        @wraps(method)
        def call(module: RecomputingModule, x: Tensor, *others: Tensor | Size | None) -> Tensor:
            wanted = on_cpu and x.device.type == "cpu" if module.recompute is None else module.recompute
            return recompute(method, module, x, *others) if wanted else method(module, x, *others)

        return call

    return decorate


def recompute(function: Callable[..., Tensor], module: nn.Module, *inputs: Tensor | Size | None) -> Tensor:
    """Call ``function(module, *inputs)``; keep the inputs for its backward pass, and compute the rest there again.

    Recomputation stops at the last tensor that the backward pass needs; a final matrix product is not redone. Nested
    calls, ``torch.compile`` and tracing call the function as usual.

    Args:
        function: Takes the module and the inputs.
        module: Its weights are used. The backward pass uses those of the forward pass, even where
            ``torch.func.functional_call`` had swapped them in.
        inputs: Its arguments.

    Raises:
        RuntimeError: In the backward pass: a weight was changed in place after the forward pass.
    """
    if not is_grad_enabled() or is_compiling() or is_tracing() or _RECOMPUTED.get():
        return function(module, *inputs)
    # pyrefly: ignore[bad-return]: torch does not annotate what checkpoint returns, which is what the function returns
    return checkpoint(_WithWeights(function, module).call, *inputs, use_reentrant=False)


class _WithWeights(nn.Module):
    """``function(module, *inputs)`` with the weights that the module has now, whichever it has when this is called."""

    def __init__(self, function: Callable[..., Tensor], module: nn.Module) -> None:
        super().__init__()
        self.function, self.module = function, module
        self.weights: dict[str, Tensor] = dict(self.named_parameters())
        self.versions = self._versions()

    def call(self, *inputs: Tensor | Size | None) -> Tensor:
        for name, before, now in zip(self.weights, self.versions, self._versions(), strict=True):
            if before != now:
                name = name.removeprefix("module.")
                raise RuntimeError(
                    f"{type(self.module).__name__}: its {name} was changed in place between the forward pass and the "
                    "backward pass, which computes part of the forward pass again; change weights after backward()"
                )
        present = dict(self.named_parameters())
        token = _RECOMPUTED.set(True)
        try:
            if all(present.get(name) is weight for name, weight in self.weights.items()):
                return self.forward(*inputs)
            return functional_call(self, self.weights, inputs)
        finally:
            _RECOMPUTED.reset(token)

    def forward(self, *inputs: Tensor | Size | None) -> Tensor:
        return self.function(self.module, *inputs)

    def _versions(self) -> list[int]:
        # Tensors made in inference mode have no version; autograd does not allow in-place changes to them.
        return [0 if weight.is_inference() else weight._version for weight in self.weights.values()]
