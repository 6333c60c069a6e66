"""Compute activations again in the backward pass instead of keeping them, whatever the layers compute."""

import sys
from collections.abc import Callable
from contextvars import ContextVar
from functools import wraps
from typing import Generic, TypeVar

from torch import Size, Tensor, is_grad_enabled, nn
from torch.jit import is_tracing
from torch.nn.modules import module as torch_module
from torch.nn.utils import parametrize
from torch.utils.checkpoint import checkpoint

from mmmsv.compat.torch_versions import is_compiling
from mmmsv.kernels import is_transformed

_Module = TypeVar("_Module", bound=nn.Module)
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
        on_cpu: Whether that is the default on a CPU; not where a layer has forward hooks, which would run twice though
            nobody has asked for that.
    """

    def decorate(method: Callable[..., Tensor]) -> Callable[..., Tensor]:
        @wraps(method)
        def call(module: RecomputingModule, x: Tensor, *others: Tensor | Size | None) -> Tensor:
            wanted = module.recompute
            if wanted is None:
                wanted = on_cpu and x.device.type == "cpu" and not (is_compiling() or _is_observed(module))
            return recompute(method, module, x, *others) if wanted else method(module, x, *others)

        return call

    return decorate


def recompute(function: Callable[..., Tensor], module: nn.Module, *inputs: Tensor | Size | None) -> Tensor:
    """Call ``function(module, *inputs)``; keep the inputs for its backward pass, and compute the rest there again.

    Recomputation stops at the last tensor that the backward pass needs; a final matrix product is not redone. It takes
    the module as it was in the forward pass: what is frozen, switched to evaluation, hooked or replaced in between
    changes nothing, nor does the end of a ``torch.func.functional_call``.

    Nested calls, ``torch.compile``, tracing, the transforms of ``torch.func`` and ``parametrize.cached()`` call the
    function as usual.

    Args:
        function: Takes the module and the inputs.
        module: Its layers are used. Those that FSDP or DeepSpeed shard gather their weights when they are called.
        inputs: Its arguments.

    Raises:
        RuntimeError: In the backward pass: a weight was changed in place after the forward pass.
    """
    if not is_grad_enabled() or _RECOMPUTED.get() or _is_traced() or parametrize._cache_enabled:
        return function(module, *inputs)
    # pyrefly: ignore[bad-return]: torch does not annotate what checkpoint returns, which is what the function returns
    return checkpoint(_Twice(function, module), *inputs, use_reentrant=False)


def _is_traced() -> bool:
    return is_compiling() or is_tracing() or is_transformed()


class _Twice(Generic[_Module]):
    """``function(module, *inputs)``, computed with the module the first time, and then with what it was before."""

    def __init__(self, function: Callable[..., Tensor], module: _Module) -> None:
        self.function, self.module = function, module
        self.before = _copied(module)
        self.versions = _versions(self.before)
        self.is_first = True

    def __call__(self, *inputs: Tensor | Size | None) -> Tensor:
        module = self.module if self.is_first else self._unchanged()
        self.is_first = False
        token = _RECOMPUTED.set(True)
        try:
            return self.function(module, *inputs)
        finally:
            _RECOMPUTED.reset(token)

    def _unchanged(self) -> _Module:
        for name, version in _versions(self.before).items():
            if version != self.versions[name]:
                raise RuntimeError(
                    f"{type(self.module).__name__}: its {name} was changed in place between the forward pass and the "
                    "backward pass, which computes part of the forward pass again; change weights after backward()"
                )
        return _copied(self.before)  # whose buffers a second backward pass finds as they were, too


def _copied(module: _Module) -> _Module:
    """Copy a module and its layers: their settings and hooks, views of their weights, and copies of their buffers."""
    copy: _Module = object.__new__(type(module))
    # Not by setattr, which is the module's own: what it registers, parameters first, is in dicts.
    for name, value in vars(module).items():
        vars(copy)[name] = value.copy() if isinstance(value, dict) else value
    for tensors, copied in ((vars(copy)["_parameters"], _frozen_view), (vars(copy)["_buffers"], Tensor.clone)):
        tensors.update({name: copied(tensor) for name, tensor in tensors.items() if tensor is not None})
    for name, layer in copy._modules.items():
        if layer is not None and not _gathers_weights(layer):
            copy._modules[name] = _copied(layer)
    return copy


def _frozen_view(weight: Tensor) -> Tensor:
    """Return a view of a weight that goes on asking for a gradient if the weight does so now."""
    return weight.detach().requires_grad_(weight.requires_grad)


def _gathers_weights(layer: nn.Module) -> bool:
    """Return whether a layer has but a part of its weights until it is called: FSDP and DeepSpeed gather them."""
    fsdp = sys.modules.get("torch.distributed.fsdp")  # where nobody has imported it, it shards nothing
    kinds = tuple(getattr(fsdp, kind) for kind in ("FullyShardedDataParallel", "FSDPModule") if hasattr(fsdp, kind))
    return isinstance(layer, kinds) or any(hasattr(weight, "ds_id") for weight in layer._parameters.values())


def _versions(module: nn.Module) -> dict[str, int]:
    # Tensors made in inference mode have no version; autograd does not allow in-place changes to them.
    return {name: 0 if weight.is_inference() else weight._version for name, weight in module.named_parameters()}


def is_every_call_observed() -> bool:
    """Return whether there are hooks for the calls of all modules."""
    return bool(torch_module._global_forward_hooks or torch_module._global_forward_pre_hooks)


def _is_observed(module: nn.Module) -> bool:
    return is_every_call_observed() or any(
        layer._forward_hooks or layer._forward_pre_hooks for layer in module.modules()
    )
