"""Which arch weights are of, told by their names and shapes."""

import re
from collections.abc import Mapping

from torch import Tensor

from mmmsv.models import MSVMamba, VMamba
from mmmsv.models.arch import Arch, BlockArch

from .layout import THEIR_MODULES

_FULL = ("row", "col", "row_rev", "col_rev")
_HALF = {1: ("col_rev",), 2: ("row_rev", "col_rev"), 3: ("row_rev", "col", "col_rev")}
_BLOCK = re.compile(r"(?:layers|stages)\.(\d+)\.blocks\.(\d+)\.")


def infer_arch(weights: Mapping[str, Tensor]) -> Arch:
    """Tell the arch of a backbone from its weights.

    Not all is in the shapes. The stem tells the family, and with it the order of norms; of F full-resolution routes and
    the others over half the map, four in all, the directions are the published ones.

    Args:
        weights: Of a backbone, in the authors' layout or ours, without a prefix.

    Raises:
        ValueError: They lack what tells it, or contradict themselves.
    """
    try:
        return _infer(weights)
    except (KeyError, IndexError, ZeroDivisionError) as error:
        raise ValueError(
            f"these are no whole weights of an MSVMamba or VMamba: {error} is missing or misshapen"
        ) from error


def name_of(arch: Arch) -> str:
    """Name an arch as its users know it: ``MSVMamba 'v3_tiny'``, or by widths and depths if it is not published."""
    for model in (MSVMamba, VMamba):
        for name, published in model.archs.items():
            if arch == published:
                return f"{model.__name__} {name!r}"
    return f"an arch with embed_dims {arch.embed_dims} and depths {arch.depths}"


def _infer(weights: Mapping[str, Tensor]) -> Arch:
    # By (stage, block): shapes under our names, but for the tensors of the scans.
    shapes: dict[tuple[int, int], dict[str, tuple[int, ...]]] = {}
    for name, tensor in weights.items():
        if match := _BLOCK.match(name):
            module, _, leaf = name[match.end() :].rpartition(".")
            place = int(match[1]), int(match[2])
            shapes.setdefault(place, {})[f"{THEIR_MODULES.get(module, module)}.{leaf}"] = tensor.shape
    stages = range(1 + max((stage for stage, _ in shapes), default=-1))
    convolutional = any(name in weights for name in ("patch_embed.5.weight", "stem.conv2.weight"))
    convolved_between = any(
        name in weights for name in ("layers.0.downsample.1.weight", "stages.1.downsample.conv.weight")
    )
    if not stages:
        raise ValueError("these are no weights of an MSVMamba or VMamba: no name is that of a block")
    first_blocks = [shapes[stage, 0] for stage in stages]
    return Arch(
        embed_dims=tuple(block["norm1.weight"][0] for block in first_blocks),
        depths=tuple(1 + max(block for place, block in shapes if place == stage) for stage in stages),
        blocks=tuple(_infer_block(block, convolutional) for block in first_blocks),
        stem="conv" if convolutional else "patch",
        downsample="conv" if convolved_between else "merge",
    )


def _infer_block(shapes: Mapping[str, tuple[int, ...]], convolutional: bool) -> BlockArch:
    dim, inner = shapes["norm1.weight"][0], shapes["scan.out_norm.weight"][0]
    full, half = (f"scan.{size}_conv.weight" in shapes for size in ("full", "half"))
    if "op.dt_projs_bias" in shapes:
        sets, state_size = shapes["op.dt_projs_bias"][0], shapes["op.A_logs"][1]
    else:
        scans = [f"scan.{size}_scan" for size, there in (("full", full), ("half", half)) if there]
        sets, state_size = sum(shapes[f"{scan}.dt_bias"][0] for scan in scans), shapes[f"{scans[0]}.A_log"][2]
    # The routes over the half map share one set, unless they are all that there is.
    full_routes = _FULL[: sets - half] if full else ()
    half_routes = _HALF[4 - len(full_routes)] if full and half else _FULL[:sets] if half else ()
    has_ffn = "ffn.fc1.weight" in shapes
    late = convolutional and full and half
    return BlockArch(
        state_size=state_size,
        ssm_ratio=inner / dim,
        full_routes=full_routes,
        half_routes=half_routes,
        fusion="norm_last" if late else "norm_first",
        conv_bias=any(f"scan.{size}_conv.bias" in shapes for size in ("full", "half")),
        se="scan.se.reduce.weight" in shapes,
        gate=shapes["scan.in_proj.weight"][0] == 2 * inner,
        ffn="none" if not has_ffn else "conv" if "ffn.dwconv.weight" in shapes else "mlp",
        ffn_ratio=shapes["ffn.fc1.weight"][0] / dim if has_ffn else BlockArch.ffn_ratio,
        ffn_norm="post" if late else "pre",
    )
