"""Backends: what one is, how it is registered, and which one computes an op.

README.md in this folder adds one in five steps.
"""

import contextlib
import logging
import os
from collections.abc import Callable, Iterator
from dataclasses import KW_ONLY, dataclass
from typing import Any, TypeAlias, TypeVar

import torch
from torch import Tensor

T = TypeVar("T")


@dataclass(frozen=True)
class Kernel:
    """Compute an op in one program: autograd, compilers and exporters see the op and not what is in it.

    Args:
        forward: Computes, from the arguments of the op (a tuple of :mod:`.arguments`), y and other results, with the
            shapes, dtypes and strides that ``new_results`` of the arguments gives them, and what the backward pass
            needs beside the tensors.
        backward: Computes, from the arguments, dy, the gradients of other results (None where nothing has used them),
            and what was kept, flat, the gradient of each tensor, in their order; in the place of one that was not
            given, anything. For an op that ``adds`` it also takes ``dy_again`` and ``dx_again`` by name, tensors or
            None, and adds them to dy and to the gradient of the first tensor.
        yields_to_compilers: Whether ``torch.compile`` gets PyTorch's ops in its place, which it fuses with others.
    """

    forward: Callable[[Any], tuple[Tensor, ...]]
    backward: Callable[..., tuple[Any, ...]]
    yields_to_compilers: bool = False


# An op as a function of its arguments, made of PyTorch's ops: autograd, compilers and exporters see through it.
Composite: TypeAlias = Callable[..., Any]
Implementation: TypeAlias = Kernel | Composite


@dataclass(frozen=True)
class Backend:
    """Describe one way to compute some of the ops; the fastest other backend computes those that it lacks.

    Args:
        name: What :func:`use_backend` knows it by.
        why_not: Returns in one clause why the backend cannot run on a device; None where it can.
        automatic_for: Types of device (``'cpu'``, ``'cuda'``, ...) that it is chosen for automatically; None for all.
        priority: Of the backends that are chosen automatically, the one with the highest number comes first.
        selective_scan: Takes :class:`~.arguments.SelectiveScan`.
        scan2d: Takes :class:`~.arguments.Scan2d`.
        depthwise_conv: Takes :class:`~.arguments.DepthwiseConv`.
        gate: Takes :class:`~.arguments.Gate`.
        merge_scales: Takes :class:`~.arguments.MergeScales`.
        layer_norm: Takes :class:`~.arguments.LayerNorm`.
        linear: Takes :class:`~.arguments.Linear`.
        choices: Returns what it has chosen for this machine, by what it is for; in a few words each.
        blocks: Computes whole blocks for their result alone, as :func:`.whole_block.compute` does.
        downsampling: Computes a layer that lowers the resolution, as :func:`.whole_block.compute_downsampling` does.
    """

    name: str
    why_not: Callable[[torch.device], str | None]
    automatic_for: tuple[str, ...] | None = ()
    priority: int = 0
    _: KW_ONLY
    selective_scan: Implementation | None = None
    scan2d: Implementation | None = None
    depthwise_conv: Implementation | None = None
    gate: Implementation | None = None
    merge_scales: Implementation | None = None
    layer_norm: Implementation | None = None
    linear: Implementation | None = None
    choices: Callable[[], dict[str, str]] = dict
    blocks: Callable[..., Tensor | None] | None = None
    downsampling: Callable[..., Tensor | None] | None = None


BACKENDS: dict[str, Backend] = {}
_ENVIRONMENT = "MMMSV_BACKEND"
_chosen: str | None = None
_logger = logging.getLogger("mmmsv.kernels")
_logged: set[tuple[str, str]] = set()


def register(backend: Backend) -> None:
    """Add a backend.

    Raises:
        ValueError: There is one of this name.
    """
    if backend.name in BACKENDS:
        raise ValueError(f"there is a backend {backend.name!r} already; register this one under another name")
    ranked = sorted((*BACKENDS.values(), backend), key=lambda one: -one.priority)
    BACKENDS.clear()
    BACKENDS.update({one.name: one for one in ranked})


def select(pick: Callable[[Backend], T | None], device: torch.device) -> T:
    """Return what computes an op on ``device``, of the backend that :func:`use_backend` or ``MMMSV_BACKEND`` names.

    That of the fastest backend where none is named, and where the one that is named does not have the op.

    Args:
        pick: Reads the op off a backend, as ``lambda backend: backend.gate`` does; None where the backend lacks it.
        device: Where the tensors are.

    Raises:
        ValueError: The environment variable names no backend.
        RuntimeError: The backend that was asked for cannot run here, or none can; the message says why.
    """
    name = _chosen or os.environ.get(_ENVIRONMENT)
    if not name:
        return automatic(pick, device)
    backend = BACKENDS[_known(name, f"environment variable {_ENVIRONMENT}")]
    picked = pick(backend)
    if picked is None:
        return automatic(pick, device)
    if reason := backend.why_not(device):
        raise RuntimeError(
            f"backend {name!r} was asked for, and cannot run on {device.type}: {reason}; choose another, or none for "
            "the fastest that can"
        )
    return picked


def automatic(pick: Callable[[Backend], T | None], device: torch.device) -> T:
    """Return what computes an op on ``device`` fastest; log once which faster backend cannot run, and why.

    Raises:
        RuntimeError: No backend can.
    """
    kind = device.type
    for name, backend in BACKENDS.items():
        picked = pick(backend) if backend.automatic_for is None or kind in backend.automatic_for else None
        if picked is None:
            continue
        reason = backend.why_not(device)
        if reason is None:
            return picked
        if (name, kind) not in _logged:
            _logged.add((name, kind))
            _logger.warning("backend %r cannot run on %s: %s; taking a slower one", name, kind, reason)
    raise RuntimeError(
        f"no backend can compute this op on {kind}; compile a program that was compiled for another device again here"
    )


def use_backend(name: str) -> contextlib.AbstractContextManager[None]:
    """Compute every op in the ``with`` block, backward passes included, by the backend ``name``, if it has the op.

    Holds for all threads of the process. An op on a device that the backend cannot run on is a RuntimeError that says
    why. What a compiled program calls of PyTorch's own stays as it was compiled.

    Args:
        name: A key of ``BACKENDS``: ``'triton'`` (NVIDIA GPUs), ``'cpu'`` (C++), ``'torch'`` (PyTorch, anywhere) or
            ``'reference'`` (token by token, slow).

    Raises:
        ValueError: There is no such backend.
    """
    return use_chosen_backend(_known(name, "use_backend"))


def chosen_backend() -> str | None:
    """Return the name that :func:`use_backend` was given, in whose ``with`` block this is; None outside of one."""
    return _chosen


@contextlib.contextmanager
def use_chosen_backend(name: str | None) -> Iterator[None]:
    """Make a result of :func:`chosen_backend` hold again while a ``with`` block runs."""
    global _chosen
    previous, _chosen = _chosen, name
    try:
        yield
    finally:
        _chosen = previous


def _known(name: str, source: str) -> str:
    if name not in BACKENDS:
        raise ValueError(f"{source}: there is no backend {name!r}; choose one of {', '.join(BACKENDS)}")
    return name
