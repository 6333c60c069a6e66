"""Infer the arch of weights from their names and shapes."""

import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import fields
from itertools import count
from typing import NamedTuple

from torch import Tensor

from mmmsv.models import MSVMamba, VMamba
from mmmsv.models.arch import Arch, BlockArch, Route

from .translation import THEIR_MODULES, as_linear

_FULL: tuple[Route, ...] = ("row", "col", "row_rev", "col_rev")
_HALF: dict[int, tuple[Route, ...]] = {1: ("col_rev",), 2: ("row_rev", "col_rev"), 3: ("row_rev", "col", "col_rev")}
_BLOCK = re.compile(r"(?:layers|stages)\.(\d+)\.blocks\.(\d+)\.")


def infer_arch(weights: Mapping[str, Tensor]) -> Arch:
    """Infer the arch of a backbone from its weights.

    Not all is in the shapes. The stem shows the family, and with it where the norms are; the directions of F routes
    over the full map, and of the others over the half map, four in all, are taken to be the published ones, and the
    stride of the half map 2.

    Args:
        weights: Of a backbone, in the authors' layout or ours, without a prefix.

    Raises:
        ValueError: They lack what shows it, or are of no arch that the authors have a layout for.
    """
    # By (stage, block): shapes under our names, but for the tensors of the scans.
    shapes: dict[tuple[int, int], dict[str, tuple[int, ...]]] = {}
    for name, tensor in weights.items():
        if match := _BLOCK.match(name):
            module, _, leaf = name[match.end() :].rpartition(".")
            place = int(match[1]), int(match[2])
            shapes.setdefault(place, {})[f"{THEIR_MODULES.get(module, module)}.{leaf}"] = as_linear(tensor).shape
    depths = _depths(shapes)
    convolutional = any(name in weights for name in ("patch_embed.5.weight", "stem.conv2.weight"))
    between = ("layers.0.downsample.1.weight", "stages.1.downsample.conv.weight")
    first_blocks = [_Shapes(f"block 0 of stage {stage}", shapes[stage, 0]) for stage in range(len(depths))]
    return Arch(
        embed_dims=tuple(block.side("norm1.weight", 0) for block in first_blocks),
        depths=depths,
        blocks=tuple(_infer_block(block, convolutional) for block in first_blocks),
        stem="conv" if convolutional else "patch",
        downsample="conv" if any(name in weights for name in between) else "merge",
    )


def name_of(arch: Arch) -> str:
    """Name an arch as a config does: ``mmmsv.MSVMamba, arch='v3_tiny'``, or by a dict if it is not a published one."""
    for model in (MSVMamba, VMamba):
        for name, published in model.archs.items():
            if arch == published:
                return f"mmmsv.{model.__name__}, arch={name!r}"
    first = arch.blocks[0]
    settings = {
        "embed_dims": arch.embed_dims,
        "depths": arch.depths,
        **_differences(arch, MSVMamba.archs["tiny"], ("stem", "downsample")),
        **_differences(first, BlockArch()),
    }
    if any(block != first for block in arch.blocks):
        settings["stages"] = [_differences(block, first) for block in arch.blocks]
    return f"mmmsv.MSVMamba, arch=dict({', '.join(f'{key}={value!r}' for key, value in settings.items())})"


def assumptions(arch: Arch) -> str:
    """Name what is assumed in an inferred arch: ``full_routes=('row',)`` and so on, of stages that differ with 'or'."""
    return " or ".join(dict.fromkeys(map(_assumptions, arch.blocks)))


def _assumptions(block: BlockArch) -> str:
    routes = {"full_routes": block.full_routes, "half_routes": block.half_routes}
    stride = {"half_stride": block.half_stride} if block.half_routes else {}
    return ", ".join(f"{name}={value!r}" for name, value in {**routes, **stride}.items() if value)


def _differences(one: Arch | BlockArch, other: Arch | BlockArch, names: Sequence[str] = ()) -> dict[str, object]:
    names = names or [field.name for field in fields(one)]
    return {name: getattr(one, name) for name in names if getattr(one, name) != getattr(other, name)}


class _Shapes(NamedTuple):
    """Shapes of the tensors of a block, and which block it is."""

    block: str
    shapes: Mapping[str, tuple[int, ...]]

    def __contains__(self, name: object) -> bool:
        return name in self.shapes

    def side(self, name: str, axis: int) -> int:
        """Give one side of a tensor."""
        if len(self.shapes.get(name, ())) <= axis or self.shapes[name][axis] == 0:
            raise ValueError(f"{name} of {self.block} is missing or misshapen")
        return self.shapes[name][axis]


def _depths(places: Collection[tuple[int, int]]) -> tuple[int, ...]:
    """Count the blocks of each stage; none may be missing between others."""
    if not places:
        raise ValueError("no name is that of a block of MSVMamba or VMamba")
    blocks: dict[int, set[int]] = {}
    for stage, block in places:
        blocks.setdefault(stage, set()).add(block)
    for what, numbers in (
        ("stage {}", set(blocks)),
        *((f"block {{}} of stage {i}", blocks[i]) for i in sorted(blocks)),
    ):
        if numbers != set(range(len(numbers))):
            gap = next(number for number in count() if number not in numbers)
            raise ValueError(f"{what.format(gap)} is missing")
    return tuple(len(blocks[stage]) for stage in range(len(blocks)))


def _infer_block(shapes: _Shapes, convolutional: bool) -> BlockArch:
    dim, inner = shapes.side("norm1.weight", 0), shapes.side("scan.out_norm.weight", 0)
    full, half = ("scan.full_conv.weight" in shapes, "scan.half_conv.weight" in shapes)
    scans = [f"scan.{size}_scan" for size, there in (("full", full), ("half", half)) if there]
    if not scans:
        raise ValueError(f"{shapes.block} has no convolution before its scans")
    if "op.dt_projs_bias" in shapes:
        sets, state_size = shapes.side("op.dt_projs_bias", 0), shapes.side("op.A_logs", 1)
    else:
        sets, state_size = sum(shapes.side(f"{scan}.dt_bias", 0) for scan in scans), shapes.side(f"{scans[0]}.A_log", 2)
    # The routes over the half map share one set, unless they are all that there is.
    full_routes, half_routes = sets - (full and half), 4 - (sets - 1)
    if not 1 <= full_routes <= 4 or (full and half and half_routes not in _HALF):
        raise ValueError(f"{shapes.block} has {sets} parameter sets, which is no published choice of routes")
    ffn = "none" if "ffn.fc1.weight" not in shapes else "conv" if "ffn.dwconv.weight" in shapes else "mlp"
    return BlockArch(
        state_size=state_size,
        ssm_ratio=inner / dim,
        full_routes=_FULL[:full_routes] if full else (),
        half_routes=_HALF[half_routes] if full and half else _FULL[:sets] if half else (),
        half_kernel=shapes.side("scan.half_conv.weight", 2) if half else BlockArch.half_kernel,
        fusion="norm_last" if convolutional and full and half else "norm_first",
        conv_bias=any(f"scan.{size}_conv.bias" in shapes for size in ("full", "half")),
        se="scan.se.reduce.weight" in shapes,
        gate=shapes.side("scan.in_proj.weight", 0) == 2 * inner,
        ffn=ffn,
        ffn_ratio=BlockArch.ffn_ratio if ffn == "none" else shapes.side("ffn.fc1.weight", 0) / dim,
        ffn_norm="post" if convolutional and ffn == "conv" else "pre",
    )
