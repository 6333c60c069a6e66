"""Describe a vision Mamba: the settings of a backbone and of its blocks, and their check."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from typing import Any, Literal, get_args

from mmmsv.kernels import ROUTES, Route

Stem = Literal["patch", "conv"]
Downsample = Literal["merge", "conv"]
Fusion = Literal["norm_first", "norm_last"]
FFN = Literal["conv", "mlp", "none"]
FFNNorm = Literal["pre", "post"]


@dataclass(frozen=True)
class BlockArch:
    """Settings of the blocks of a stage; the defaults are those of MSVMamba in arXiv 2405.14174.

    Args:
        state_size: N of the scans.
        ssm_ratio: Scans work on ``D = ssm_ratio * C`` channels.
        full_routes: Routes over the full-resolution map, each with its own parameter set.
        half_routes: Routes over the map of lower resolution, one sequence with one parameter set. Without
            ``half_routes`` the scan is SS2D; without ``full_routes`` it is SS2D on the map of lower resolution, each
            route with its own parameter set.
        half_kernel: Side of the kernel of the convolution that makes the map of lower resolution, 3 or 7.
        half_stride: How much lower that resolution is, 1 to ``half_kernel``.
        fusion: How the two resolutions meet in MS2D: ``'norm_first'``, each through the norm, the lower one then
            upsampled bilinearly (arXiv); or ``'norm_last'``, the lower one upsampled to nearest neighbours, and one
            norm over the sum (NeurIPS).
        conv_bias: Biases in the depthwise convolutions before the scans.
        se: Squeeze-and-excitation after the scans.
        gate: The gate branch of the scans.
        ffn: ``'conv'`` (ConvFFN), ``'mlp'`` or ``'none'``.
        ffn_ratio: Width of the FFN over C.
        ffn_norm: Whether the norm of the FFN's branch comes before (``'pre'``) or after it (``'post'``).

    Raises:
        TypeError: A setting is of another type.
        ValueError: A setting is outside what it may be.
    """

    state_size: int = 1
    ssm_ratio: float = 2.0
    full_routes: tuple[Route, ...] = ("row",)
    half_routes: tuple[Route, ...] = ("row_rev", "col", "col_rev")
    half_kernel: int = 7
    half_stride: int = 2
    fusion: Fusion = "norm_first"
    conv_bias: bool = True
    se: bool = True
    gate: bool = True
    ffn: FFN = "conv"
    ffn_ratio: float = 2.0
    ffn_norm: FFNNorm = "pre"

    def __post_init__(self) -> None:
        for name in ("full_routes", "half_routes"):
            routes = _as_tuple(self, name)
            if not all(isinstance(route, str) and route in ROUTES for route in routes):
                raise ValueError(f"arch: {name} is {routes}, expected routes out of {ROUTES}")
        if not self.full_routes and not self.half_routes:
            raise ValueError("arch: full_routes and half_routes are both empty, expected one route at least")
        if not _is_whole(self.state_size):
            raise ValueError(f"arch: state_size is {self.state_size!r}, expected a whole number of at least 1")
        if type(self.half_kernel) is not int or self.half_kernel not in (3, 7):
            raise ValueError(f"arch: half_kernel is {self.half_kernel!r}, expected 3 or 7")
        if not _is_whole(self.half_stride) or self.half_stride > self.half_kernel:
            raise ValueError(
                f"arch: half_stride is {self.half_stride!r}, expected a whole number in 1..{self.half_kernel}, the "
                "half_kernel"
            )
        for name in ("ssm_ratio", "ffn_ratio"):
            ratio = getattr(self, name)
            if type(ratio) not in (int, float) or not 0 < ratio < math.inf:
                raise ValueError(f"arch: {name} is {ratio!r}, expected a number above 0")
        for name in ("conv_bias", "se", "gate"):
            if type(getattr(self, name)) is not bool:
                raise TypeError(f"arch: {name} is {getattr(self, name)!r}, expected True or False")
        _check_choice("fusion", self.fusion, Fusion)
        _check_choice("ffn", self.ffn, FFN)
        _check_choice("ffn_norm", self.ffn_norm, FFNNorm)


@dataclass(frozen=True)
class Arch:
    """Settings of a backbone.

    Args:
        embed_dims: Channels C of each stage.
        depths: Blocks of each stage.
        blocks: Settings of the blocks of each stage, or one for all of them.
        stem: ``'patch'`` (4 x 4 patches) or ``'conv'`` (two convolutions of stride 2).
        downsample: Between stages: ``'merge'`` (patch merging) or ``'conv'``.

    Raises:
        TypeError: A setting is of another type.
        ValueError: A setting is outside what it may be, or two of them do not go together.
    """

    embed_dims: tuple[int, ...]
    depths: tuple[int, ...]
    blocks: tuple[BlockArch, ...]
    stem: Stem = "patch"
    downsample: Downsample = "merge"

    def __post_init__(self) -> None:
        for name in ("embed_dims", "depths"):
            if not all(_is_whole(value) for value in _as_tuple(self, name)):
                raise ValueError(f"arch: {name} is {getattr(self, name)!r}, expected whole numbers of at least 1")
        if isinstance(self.blocks, BlockArch):
            object.__setattr__(self, "blocks", (self.blocks,) * len(self.depths))
        if not all(isinstance(block, BlockArch) for block in _as_tuple(self, "blocks")):
            raise TypeError(f"arch: blocks is {self.blocks!r}, expected a BlockArch for each stage, or one for all")
        if not self.depths or len(self.embed_dims) != len(self.depths):
            raise ValueError(f"arch: embed_dims {self.embed_dims} and depths {self.depths} must be of one length >= 1")
        if len(self.blocks) != len(self.depths):
            raise ValueError(
                f"arch: settings for {len(self.blocks)} stages, but depths {self.depths} for {len(self.depths)}"
            )
        _check_choice("stem", self.stem, Stem)
        _check_choice("downsample", self.downsample, Downsample)
        if self.stem == "conv" and self.embed_dims[0] % 2:
            raise ValueError(f"arch: stem 'conv' halves embed_dims[0], which is {self.embed_dims[0]}: give an even one")
        for dim, block in zip(self.embed_dims, self.blocks, strict=True):
            for name in ("ssm_ratio", "ffn_ratio"):
                width = getattr(block, name) * dim
                if width < 8 or abs(width - round(width)) > 1e-6:
                    raise ValueError(
                        f"arch: {name} is {getattr(block, name)!r}, expected a number that makes whole numbers of at "
                        f"least 8 of the embed_dims {self.embed_dims}"
                    )


def resolve_arch(arch: str | Mapping[str, Any] | Arch, archs: Mapping[str, Arch], model: str) -> Arch:
    """Look up a published arch by name, or make one of a user's own settings.

    Args:
        arch: A name, an :class:`Arch`, or a dict with the keys of :class:`Arch` and of :class:`BlockArch`, the latter
            for all stages, and

            - ``base``: name of the arch from which the rest is taken; without it ``embed_dims`` and ``depths`` are
              needed, and the rest is that of ``'tiny'``;
            - ``stages``: for each stage a dict of the keys of :class:`BlockArch` that differ there.

            ``full_routes`` and ``half_routes`` are usually given together: the one that is not given stays as it is.
        archs: The published ones, by name.
        model: Name of the backbone, for messages.

    Raises:
        TypeError: ``arch`` is neither, or a setting is of the wrong type.
        ValueError: No published arch has this name; a key is unknown or missing; a setting is out of range.
    """
    if isinstance(arch, str):
        return _published(arch, archs, model)
    if isinstance(arch, Arch):
        return arch
    if not isinstance(arch, Mapping):
        names = ", ".join(archs)
        raise TypeError(f"{model}: arch is a {type(arch).__name__}, expected a name ({names}), a dict or an Arch")
    _check_keys(arch, ["base", "stages", *_WHOLE_KEYS, *_BLOCK_KEYS], f"{model}: the arch dict")
    missing = [key for key in ("embed_dims", "depths") if key not in arch]
    if missing and "base" not in arch:
        raise ValueError(f"{model}: the arch dict {dict(arch)} lacks {missing}, or a base to take them from")
    base = _published(arch.get("base", "tiny"), archs, model)
    whole = {key: arch[key] for key in _WHOLE_KEYS if key in arch}
    common = {key: arch[key] for key in _BLOCK_KEYS if key in arch}
    # The published ones have one kind of block, whatever the stage.
    block = replace(base.blocks[0], **common)
    if "stages" not in arch:
        whole["blocks"] = block
        return replace(base, **whole)
    stages = arch["stages"]
    if not isinstance(stages, (list, tuple)) or not all(isinstance(stage, Mapping) for stage in stages):
        raise TypeError(f"{model}: stages in the arch dict is {stages!r}, expected a list of dicts, one for each stage")
    for stage in stages:
        _check_keys(stage, _BLOCK_KEYS, f"{model}: stages in the arch dict")
    return replace(base, **whole, blocks=tuple(replace(block, **stage) for stage in stages))


_BLOCK_KEYS = [field.name for field in fields(BlockArch)]
_WHOLE_KEYS = [field.name for field in fields(Arch) if field.name != "blocks"]


def _published(name: object, archs: Mapping[str, Arch], model: str) -> Arch:
    if not isinstance(name, str) or name not in archs:
        raise ValueError(
            f"{model}: there is no arch {name!r}; choose one of {', '.join(archs)}, or give a dict of settings"
        )
    return archs[name]


def _check_keys(given: Mapping[str, object], allowed: list[str], where: str) -> None:
    if unknown := [key for key in given if key not in allowed]:
        raise ValueError(f"{where} has unknown key(s) {unknown}; allowed are {allowed}")


def _as_tuple(settings: Arch | BlockArch, name: str) -> tuple:
    value = getattr(settings, name)
    if not isinstance(value, (list, tuple)):
        raise TypeError(f"arch: {name} is {value!r}, expected a list or tuple")
    object.__setattr__(settings, name, tuple(value))
    return tuple(value)


def _is_whole(value: object) -> bool:
    return type(value) is int and value > 0


def _check_choice(name: str, value: object, choices: object) -> None:
    allowed = get_args(choices)
    if not isinstance(value, str) or value not in allowed:
        *first, last = map(repr, allowed)
        raise ValueError(f"arch: {name} is {value!r}, expected {', '.join(first)} or {last}")
