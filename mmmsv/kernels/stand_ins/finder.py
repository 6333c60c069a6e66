"""How stand-ins are found. It imports the standard library alone.

A wheel has a copy of this file, as ``_mmmsv_stand_in.py`` beside the package, for a ``.pth`` file that runs it at the
start of Python: importing it by its own name would import torch.
"""

import os
import sys
from collections.abc import Sequence
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType

NAMES = (
    "causal_conv1d",
    "causal_conv1d_cuda",
    "mamba_ssm",
    "selective_scan_cuda",
    "selective_scan_cuda_core",
    "selective_scan_cuda_ndstate",
    "selective_scan_cuda_nrow",
    "selective_scan_cuda_oflex",
)
_ENVIRONMENT = "MMMSV_STAND_IN"


class StandInFinder(MetaPathFinder):
    """Find the modules of ``packages/`` by their own names; as the last finder, only those that no other has."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        package = find_spec("mmmsv") if fullname in NAMES else None
        if package is None or package.origin is None:
            return None
        folder = Path(package.origin).parent / "kernels/stand_ins/packages"
        return PathFinder.find_spec(fullname, [str(folder)], target)


def append_finder() -> None:
    """Let Python ask a :class:`StandInFinder` last; nothing where it does already."""
    if not any(isinstance(finder, StandInFinder) for finder in sys.meta_path):
        sys.meta_path.append(StandInFinder())


def is_asked_for() -> bool:
    """Return whether the environment variable ``MMMSV_STAND_IN`` is 1.

    Raises:
        ValueError: It is something else than 1, 0 or empty.
    """
    value = os.environ.get(_ENVIRONMENT, "")
    if value not in ("", "0", "1"):
        raise ValueError(f"environment variable {_ENVIRONMENT} is {value!r}; set it to 1, or to 0 for no stand-ins")
    return value == "1"


def append_finder_if_asked() -> None:
    """Do what the environment variable asks for, at the start of Python."""
    if is_asked_for():
        append_finder()
