"""Launches the kernels: how one is launched for tensors of a kind is worked out once.

Triton binds and looks at each argument of each launch, and the sizes that kernels take are computed in Python. On an
H100 that took several times as long as the kernels of a model. So what depends on shapes, strides, dtypes and alignment
alone is kept, and the compiled kernel with it; of a launch, addresses remain.
"""

from collections.abc import Callable
from typing import Any, NamedTuple, TypeVar

import torch
from torch import Tensor
from triton import knobs
from triton.compiler import CompiledKernel
from triton.runtime import driver

T = TypeVar("T")
# Of what is kept, a few kilobytes each; a detector sees images of many sizes.
_MOST_KEPT = 8192


class Launch(NamedTuple):
    """How a kernel is launched: its number of programs, the numbers that follow its tensors, and constants by name."""

    programs: int
    numbers: tuple[Any, ...]
    constants: dict[str, Any]


class _Ready(NamedTuple):
    compiled: CompiledKernel
    programs: int
    arguments: tuple[Any, ...]  # that follow the tensors, constants included


_kept: dict[tuple[Any, ...], Any] = {}
_MISSING: Any = object()


def once(function: Callable[..., T], tensors: tuple[Tensor | None, ...], *options: Any) -> T:
    """Return ``function(*tensors, *options)``, computed once for all tensors of a kind.

    It may look at no more of them than device, shapes, strides, dtypes, and addresses modulo 16 bytes. They are on one
    device, and the first one is given; ``options`` are hashable.
    """
    key = _key(function, tensors, options)
    value = _kept.get(key, _MISSING)  # in one step: another thread may empty it
    if value is _MISSING:
        value = function(*tensors, *options)
        _keep(key, value)
    return value


def launch(kernel: Any, tensors: tuple[Tensor | None, ...], prepare: Callable[..., Launch], *options: Any) -> None:
    """Launch a kernel that takes the tensors, then numbers, then constants.

    What ``prepare(*tensors, *options)`` returns is kept, as that of a function for :func:`once`.
    """
    key = _key(kernel, tensors, options)
    device = key[1]
    if device >= 0 and device != torch.cuda.current_device():
        with torch.cuda.device(device):
            return launch(kernel, tensors, prepare, *options)
    ready = _kept.get(key)
    if ready is not None:
        return _launch_again(ready, device, tensors)
    programs, numbers, constants = prepare(*tensors, *options)
    compiled = kernel[programs,](*tensors, *numbers, **constants)
    if isinstance(compiled, CompiledKernel):  # an interpreter has none
        names = kernel.arg_names[len(tensors) + len(numbers) :]
        _keep(key, _Ready(compiled, programs, (*numbers, *(constants[name] for name in names))))
    return None


def _launch_again(ready: _Ready, device: int, tensors: tuple[Tensor | None, ...]) -> None:
    compiled, programs, arguments = ready
    if knobs.runtime.launch_enter_hook.calls or knobs.runtime.launch_exit_hook.calls:  # a profiler's
        compiled[programs, 1, 1](*tensors, *arguments)
        return
    stream = driver.active.get_current_stream(device)
    compiled.run(
        *(programs, 1, 1, stream, compiled.function, compiled.packed_metadata, None, None, None),
        *tensors,
        *arguments,
    )


def _key(called: Any, tensors: tuple[Tensor | None, ...], options: tuple[Any, ...]) -> tuple[Any, ...]:
    # pyrefly: ignore[missing-attribute]: the first one is a tensor
    return id(called), tensors[0].get_device(), options, *map(_described, tensors)


def _described(tensor: Tensor | None) -> tuple[Any, ...] | None:
    return None if tensor is None else (tensor.shape, tensor.stride(), tensor.dtype, tensor.data_ptr() & 15)


def _keep(key: tuple[Any, ...], value: Any) -> None:
    if len(_kept) >= _MOST_KEPT:
        _kept.clear()
    _kept[key] = value
