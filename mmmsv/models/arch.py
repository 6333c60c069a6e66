"""What distinguishes one MSVMamba from another: the published sizes, and the check of a user's own."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Literal

from mmmsv.kernels import ROUTES, Route


@dataclass(frozen=True)
class MSVMambaArch:
    """Sizes and switches of an MSVMamba.

    Args:
        embed_dims: Channels C of each stage.
        depths: Blocks of each stage.
        state_size: N of the scans.
        ssm_ratio: Scans work on ``ssm_ratio * C`` channels.
        full_routes: Routes over the full-resolution map, each with its own parameter set.
        half_routes: Routes over the half-resolution map, one sequence with one parameter set.
        se: Squeeze-and-excitation after the scans.
        gate: The gate branch of MS2D.
        ffn: ``'conv'`` (ConvFFN) or ``'none'``.
        ffn_ratio: Width of the FFN over C.

    Raises:
        TypeError: A setting is of another type.
        ValueError: A setting is outside what it may be.
    """

    embed_dims: tuple[int, ...]
    depths: tuple[int, ...]
    state_size: int = 1
    ssm_ratio: float = 2.0
    full_routes: tuple[Route, ...] = ("row",)
    half_routes: tuple[Route, ...] = ("row_rev", "col", "col_rev")
    se: bool = True
    gate: bool = True
    ffn: Literal["conv", "none"] = "conv"
    ffn_ratio: float = 2.0

    def __post_init__(self) -> None:
        for name in ("embed_dims", "depths", "full_routes", "half_routes"):
            value = getattr(self, name)
            if not isinstance(value, (list, tuple)):
                raise TypeError(f"arch: {name} is {value!r}, expected a list or tuple")
            object.__setattr__(self, name, tuple(value))
        if len(self.embed_dims) != len(self.depths) or not self.depths:
            raise ValueError(f"arch: embed_dims {self.embed_dims} and depths {self.depths} must be of one length >= 1")
        for name, values in (
            ("embed_dims", self.embed_dims),
            ("depths", self.depths),
            ("state_size", (self.state_size,)),
        ):
            if not all(type(value) is int and value > 0 for value in values):
                raise ValueError(f"arch: {name} is {getattr(self, name)!r}, expected whole numbers of at least 1")
        dims = self.embed_dims
        for name in ("ssm_ratio", "ffn_ratio"):
            ratio = getattr(self, name)
            if type(ratio) not in (int, float) or not all(_is_width(ratio * dim) for dim in dims):
                raise ValueError(
                    f"arch: {name} is {ratio!r}, expected a number that makes whole numbers of at least 8 of the "
                    f"embed_dims {dims}"
                )
        for name in ("se", "gate"):
            if type(getattr(self, name)) is not bool:
                raise TypeError(f"arch: {name} is {getattr(self, name)!r}, expected True or False")
        for name in ("full_routes", "half_routes"):
            routes = getattr(self, name)
            if not routes or not all(route in ROUTES for route in routes):
                raise ValueError(f"arch: {name} is {routes}, expected one or more of {ROUTES}")
        if self.ffn not in ("conv", "none"):
            raise ValueError(f"arch: ffn is {self.ffn!r}, expected 'conv' or 'none'")


def _is_width(value: float) -> bool:
    return 8 <= value < math.inf and abs(value - round(value)) < 1e-6


ARCHS: dict[str, MSVMambaArch] = {
    "nano": MSVMambaArch(embed_dims=(48, 96, 192, 384), depths=(1, 2, 5, 2)),
    "micro": MSVMambaArch(embed_dims=(64, 128, 256, 512), depths=(1, 2, 5, 2)),
    "tiny": MSVMambaArch(embed_dims=(96, 192, 384, 768), depths=(1, 2, 9, 2)),
}


def resolve_arch(arch: str | Mapping[str, object]) -> MSVMambaArch:
    """Look up a published size by name, or check a user's own.

    Raises:
        TypeError: ``arch`` is neither, or a setting is of the wrong type.
        ValueError: No published size has this name; a key is unknown or missing; a setting is out of range.
    """
    if isinstance(arch, str):
        if arch not in ARCHS:
            raise ValueError(f"MSVMamba: there is no arch {arch!r}; choose one of {', '.join(ARCHS)}, or give a dict")
        return ARCHS[arch]
    if not isinstance(arch, Mapping):
        raise TypeError(f"MSVMamba: arch is a {type(arch).__name__}, expected a name ({', '.join(ARCHS)}) or a dict")
    allowed = [field.name for field in fields(MSVMambaArch)]
    if unknown := [key for key in arch if key not in allowed]:
        raise ValueError(f"MSVMamba: unknown key(s) {unknown} in the arch dict; allowed are {allowed}")
    if missing := [key for key in ("embed_dims", "depths") if key not in arch]:
        raise ValueError(f"MSVMamba: the arch dict {dict(arch)} lacks {missing}")
    return MSVMambaArch(**arch)
