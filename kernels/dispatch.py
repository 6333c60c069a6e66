"""Which backend computes a scan: a new one is a module with ``forward`` and ``backward`` and a line in ``BACKENDS``."""

import contextlib
import os
from collections.abc import Iterator
from types import ModuleType

from . import chunked, reference

# In the order in which the automatic choice tries them.
BACKENDS: dict[str, ModuleType] = {"torch": chunked, "reference": reference}

_ENVIRONMENT = "MMMSV_BACKEND"
_chosen: str | None = None


def select() -> ModuleType:
    """Return the backend in force: that of :func:`use_backend`, else of ``MMMSV_BACKEND``, else the first.

    Raises:
        ValueError: The environment variable names no backend.
    """
    name = _chosen or os.environ.get(_ENVIRONMENT) or next(iter(BACKENDS))
    return BACKENDS[_known(name, f"environment variable {_ENVIRONMENT}")]


@contextlib.contextmanager
def use_backend(name: str) -> Iterator[None]:
    """Compute every scan in the ``with`` block, backward passes included, by the backend ``name``.

    Args:
        name: A key of ``BACKENDS``: ``'torch'`` (chunked, vectorised) or ``'reference'`` (token by token, slow).

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
