"""Compute activations again in the backward pass instead of keeping them, whatever the layers compute."""

import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from functools import wraps
from types import FunctionType, MethodType
from typing import Any

from torch import Size, Tensor, is_grad_enabled, nn
from torch.jit import ScriptModule, is_tracing
from torch.nn.modules import module as torch_module
from torch.nn.utils import parametrize
from torch.utils.checkpoint import checkpoint

from mmmsv.compat.torch_versions import is_compiling
from mmmsv.kernels import Selection, is_transformed, share_memory

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
        on_cpu: Whether that is the default on a CPU; not where a layer has forward hooks, say, which would run twice
            though nobody has asked for that.
    """

    def decorate(method: Callable[..., Tensor]) -> Callable[..., Tensor]:
        @wraps(method)
        def call(module: RecomputingModule, x: Tensor, *others: Tensor | Size | None) -> Tensor:
            wanted = module.recompute
            if wanted is None:
                wanted = on_cpu and x.device.type == "cpu" and not is_compiling() and _is_fit_by_default(module)
            return recompute(method, module, x, *others) if wanted else method(module, x, *others)

        return call

    return decorate


def recompute(function: Callable[..., Tensor], module: nn.Module, *inputs: Tensor | Size | None) -> Tensor:
    """Call ``function(module, *inputs)``; keep the inputs for its backward pass, and compute the rest there again.

    Recomputation stops at the last tensor that the backward pass needs; a final matrix product is not redone. While it
    runs, the module is as it was in the forward pass (:class:`_Before`): what is frozen, switched to evaluation, hooked
    or replaced in between changes nothing, nor does the end of a ``torch.func.functional_call``.

    Nested calls, ``torch.compile``, tracing, the transforms of ``torch.func`` and ``parametrize.cached()`` call the
    function as usual.

    Args:
        function: Takes the module and the inputs.
        module: Its layers are used. Those that FSDP or DeepSpeed shard gather their weights when they are called.
        inputs: Its arguments.

    Raises:
        RuntimeError: In the backward pass: a weight was changed in place after the forward pass.
    """
    if not is_grad_enabled() or _is_traced() or _RECOMPUTED.get() or parametrize._cache_enabled:
        return function(module, *inputs)
    # pyrefly: ignore[bad-return]: torch does not annotate what checkpoint returns, which is what the function returns
    return checkpoint(_Twice(function, module), *inputs, use_reentrant=False)


def _is_traced() -> bool:
    return is_compiling() or is_tracing() or is_transformed()


class _Twice:
    """``function(module, *inputs)``, computed first as it is, and then with the module as it was."""

    def __init__(self, function: Callable[..., Tensor], module: nn.Module) -> None:
        self.function, self.module = function, module
        self.before: _Before | None = None

    def __call__(self, *inputs: Tensor | Size | None) -> Tensor:
        token = _RECOMPUTED.set(True)
        try:
            if self.before is not None:
                with self.before.restored():
                    return self.function(self.module, *inputs)
            buffers = {layer: _Buffers(layer) for _, layer in _layers(self.module) if layer._buffers}
            y = self.function(self.module, *inputs)
            self.before = _Before(self.module, buffers)
            return y
        finally:
            _RECOMPUTED.reset(token)


class _Before:
    """What decides what a module computes, at the end of its forward pass, and its buffers before it.

    That is for each layer: its class, parameters, buffers, layers, hooks, mode, and attributes that are numbers,
    strings or functions; hooks of all modules; which parameters ask for a gradient; what the kernels are chosen by. No
    other attribute is held, since a layer may keep its output in one, and this lives as long as the graph of that.

    Args:
        module: The module.
        buffers: Those of its layers before the forward pass.
    """

    def __init__(self, module: nn.Module, buffers: "dict[nn.Module, _Buffers]") -> None:
        self.name = type(module).__name__
        layers = list(_layers(module))
        changed = {layer: before.copies for layer, before in buffers.items() if before.have_changed()}
        self.layers = [(layer, type(layer), _held(layer), changed.get(layer, {})) for _, layer in layers]
        self.weights = [
            (path + name, weight, weight.requires_grad, _version(weight), weight.detach())
            for path, layer in layers
            for name, weight in layer._parameters.items()
            if weight is not None
        ]
        self.global_hooks = [(hooks, hooks.copy()) for hooks in _GLOBAL_HOOKS]
        self.kernels = Selection.current()

    @contextmanager
    def restored(self) -> Iterator[None]:
        """Make the module what it was, while a ``with`` block runs."""
        for name, weight, _, version, _ in self.weights:
            if _version(weight) != version:
                raise RuntimeError(
                    f"{self.name}: its {name} was changed in place between the forward pass and the backward pass, "
                    "which computes part of the forward pass again; change weights after backward()"
                )
        changed = [each for each in self.layers if not _is_unchanged(*each)]
        layers = [(layer, type(layer), vars(layer).copy()) for layer, *_ in changed]
        flags = [(weight, not flag) for _, weight, flag, *_ in self.weights if weight.requires_grad != flag]
        # Others that were put in the place of the numbers themselves, as moving averages are.
        swapped = [
            (weight, weight.data, data) for _, weight, *_, data in self.weights if not share_memory(weight, data)
        ]
        hooks = [(current, current.copy(), before) for current, before in self.global_hooks if current != before]
        try:
            for layer, kind, held, buffers in changed:
                _put(layer, kind, _restored(layer, held))
                layer._buffers.update({name: buffer.clone() for name, buffer in buffers.items()})
            for weight, flag in flags:
                weight.requires_grad_(not flag)
            for weight, _, data in swapped:
                weight.data = data
            for current, _, before in hooks:
                _replace(current, before)
            with self.kernels.restored():
                yield
        finally:
            for current, now, _ in hooks:
                _replace(current, now)
            for weight, data, _ in swapped:
                weight.data = data
            for weight, flag in flags:
                weight.requires_grad_(flag)
            for layer, kind, attributes in layers:
                _put(layer, kind, attributes)


# What a module registers in dicts and sets, by the names of these.
_REGISTRIES = frozenset(name for name, value in vars(nn.Module()).items() if isinstance(value, (dict, set)))
_GLOBAL_HOOKS = [
    value for name, value in vars(torch_module).items() if name.startswith("_global_") and isinstance(value, dict)
]
# Of attributes that hold no tensor, in which there could be a graph.
_PLAIN = frozenset((bool, int, float, str, type(None), FunctionType, MethodType))
_CURRENT, _EMPTY = object(), object()  # stand for the value that an attribute has when it is asked for, and for none


def _held(layer: nn.Module) -> dict[str, Any]:
    """Return the attributes of a layer that decide what it computes, and for the others that they are there."""
    held = {}
    for name, value in vars(layer).items():  # a loop that takes as little time as it can: it is there for each layer
        if type(value) in _PLAIN:
            held[name] = value
        elif name in _REGISTRIES:
            held[name] = value.copy() if value else _EMPTY
        else:
            held[name] = _CURRENT
    return held


def _is_unchanged(layer: nn.Module, kind: type[nn.Module], held: dict[str, Any], buffers: dict[str, Tensor]) -> bool:
    """Return whether a layer is as it was; then nothing is put back, and other threads may use it at the same time."""
    current = vars(layer)
    if buffers or type(layer) is not kind or current.keys() != held.keys():
        return False
    for name, value in held.items():
        now = current[name]
        if value is now or value is _CURRENT:
            continue
        if value is _EMPTY:
            if now:
                return False
        elif isinstance(value, dict):
            if now.keys() != value.keys() or any(now[key] is not each for key, each in value.items()):
                return False
        elif type(now) is not type(value) or now != value:
            return False
    return True


def _restored(layer: nn.Module, held: dict[str, Any]) -> dict[str, Any]:
    attributes, current = held.copy(), vars(layer)
    for name, value in held.items():
        if value is _CURRENT:
            attributes[name] = current.get(name)
        elif value is _EMPTY:
            attributes[name] = type(current[name])()
        elif name in _REGISTRIES:
            attributes[name] = value.copy()
    return attributes


def _put(layer: nn.Module, kind: type[nn.Module], attributes: dict[str, object]) -> None:
    layer.__class__ = kind
    _replace(vars(layer), attributes)


def _replace(content: dict, by: Mapping) -> None:
    content.clear()
    content.update(by)


class _Buffers:
    """The buffers of a layer, and copies of them, in case that a call of it changes them."""

    def __init__(self, layer: nn.Module) -> None:
        self.layer = layer
        self.buffers = {
            name: (buffer, _version(buffer)) for name, buffer in layer._buffers.items() if buffer is not None
        }
        self.copies = {name: buffer.clone() for name, (buffer, _) in self.buffers.items()}

    def have_changed(self) -> bool:
        return any(
            self.layer._buffers.get(name) is not buffer or _version(buffer) != version
            for name, (buffer, version) in self.buffers.items()
        )


def _layers(module: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """Yield a module and the layers in it, each once, with what the names of their parameters begin with.

    Left out are programs, and what FSDP and DeepSpeed shard, which has a part of its weights until it is called.
    """
    # Where nobody has imported FSDP, it shards nothing.
    fsdp = [sys.modules.get(f"torch.distributed.{place}") for place in ("fsdp", "_composable.fsdp")]
    kinds = (getattr(place, kind, None) for place in fsdp for kind in ("FullyShardedDataParallel", "FSDPModule"))
    left_out = (ScriptModule, *filter(None, kinds))
    seen, waiting = {module}, [("", module)]
    while waiting:
        path, layer = waiting.pop()
        yield path, layer
        for name, inner in layer._modules.items():
            if inner is None or inner in seen or isinstance(inner, left_out):
                continue
            if not any(hasattr(weight, "ds_id") for weight in inner._parameters.values()):
                seen.add(inner)
                waiting.append((f"{path}{name}.", inner))


def _version(tensor: Tensor) -> int:
    # Tensors made in inference mode have no version; autograd does not allow in-place changes to them.
    return 0 if tensor.is_inference() else tensor._version


def is_every_call_observed() -> bool:
    """Return whether there are hooks for the calls of all modules."""
    return bool(torch_module._global_forward_hooks or torch_module._global_forward_pre_hooks)


def _is_fit_by_default(module: nn.Module) -> bool:
    """Return whether no layer has forward hooks, which would run twice, or is a program, which cannot stop halfway."""
    return not is_every_call_observed() and not any(
        layer._forward_hooks or layer._forward_pre_hooks or isinstance(layer, ScriptModule)
        for layer in module.modules()
    )
