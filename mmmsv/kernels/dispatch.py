"""Which backend computes a scan, and why not another. A new one is a :class:`Backend` and a line in ``BACKENDS``."""

import contextlib
import logging
import os
from collections.abc import Iterator

import torch

from .backend import Backend
from .backends.cpu import scan as native_scan
from .backends.reference import scan as reference
from .backends.torch import scan as chunked
from .backends.triton import scan as triton_scan

BACKENDS: dict[str, Backend] = {
    "triton": triton_scan.BACKEND,
    "cpu": native_scan.BACKEND,
    "torch": chunked.BACKEND,
    "reference": reference.BACKEND,
}

# What the automatic choice tries, fastest first, by type of device; "torch" where a type is not listed.
_AUTOMATIC = {"cuda": ("triton", "torch"), "cpu": ("cpu", "torch")}
_ENVIRONMENT = "MMMSV_BACKEND"
_chosen: str | None = None
_logger = logging.getLogger("mmmsv.kernels")
_logged: set[str] = set()


def select(device: torch.device) -> Backend:
    """Return the backend for ``device``: that of :func:`use_backend`, else of ``MMMSV_BACKEND``, else the fastest.

    Raises:
        ValueError: The environment variable names no backend.
        RuntimeError: The backend that was asked for cannot run here; the message says why.
    """
    name = _chosen or os.environ.get(_ENVIRONMENT)
    if not name:
        return BACKENDS[automatic(device)]
    backend = BACKENDS[_known(name, f"environment variable {_ENVIRONMENT}")]
    if reason := backend.why_not(device):
        raise RuntimeError(
            f"scan backend {name!r} was asked for, and cannot run on {device.type}: {reason}; choose another, or none "
            "for the fastest that can"
        )
    return backend


def automatic(device: torch.device) -> str:
    """Name the fastest backend that can run on ``device``; says once in the log which faster one cannot, and why."""
    for name in _AUTOMATIC.get(device.type, ("torch",)):
        reason = BACKENDS[name].why_not(device)
        if reason is None:
            return name
        if name not in _logged:
            _logged.add(name)
            _logger.warning("scan backend %r cannot run on %s: %s; taking a slower one", name, device.type, reason)
    return "torch"


@contextlib.contextmanager
def use_backend(name: str) -> Iterator[None]:
    """Compute every scan in the ``with`` block, backward passes included, by the backend ``name``.

    Holds for all threads of the process. A scan on a device that the backend cannot run on is a RuntimeError that says
    why.

    Args:
        name: A key of ``BACKENDS``: ``'triton'`` (NVIDIA GPUs), ``'cpu'`` (C++), ``'torch'`` (PyTorch, anywhere) or
            ``'reference'`` (token by token, slow).

    Raises:
        ValueError: There is no such backend.
    """
    global _chosen
    previous, _chosen = _chosen, _known(name, "use_backend")
    try:
        yield
    finally:
        _chosen = previous


def _known(name: str, source: str) -> str:
    if name not in BACKENDS:
        raise ValueError(f"{source}: there is no scan backend {name!r}; choose one of {', '.join(BACKENDS)}")
    return name
