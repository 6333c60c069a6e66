"""Translate the authors' names and shapes of the weights into ours, and back.

The authors of MSVMamba and of VMamba name weights after their modules. Both directions are pure functions of named
tensors, so they also translate gradients, or shapes alone (tensors on the meta device). What differs besides names:

- The parameter sets of all routes of a scan are stacked in the authors' files; ours keeps those of the full-resolution
  map and that of the lower resolution apart. The latter is first in MSVMamba's arXiv family, last in its NeurIPS one.
- VMamba's current files join the axis of the sets with the next one ("flat"); its older ones and MSVMamba's do not
  ("stacked").
- A linear layer may be written as a 1 x 1 convolution, ``(out, in, 1, 1)``.

Ours are the names of a whole model: ``backbone.*``, with ``head.fc.*`` in a classifier.
"""

from collections.abc import Iterator, Mapping
from typing import NamedTuple

from torch import Tensor, cat

from mmmsv.models.arch import Arch, BlockArch

# Modules, as ours: the authors'. The name of the tensor in them (weight, bias) is the same.
_STEM = {"patch": {"conv": "0", "norm": "2"}, "conv": {"conv1": "0", "norm1": "2", "conv2": "5", "norm2": "7"}}
_DOWNSAMPLE = {"merge": {"norm": "norm", "reduction": "reduction"}, "conv": {"conv": "1", "norm": "3"}}
_BLOCK = {
    "norm1": "norm",
    "norm2": "norm2",
    "scan.in_proj": "op.in_proj",
    "scan.full_conv": "op.conv2d",
    "scan.half_conv": "op.conv2d_b1",
    "scan.out_norm": "op.out_norm",
    "scan.se.reduce": "op.se.fc.0",
    "scan.se.expand": "op.se.fc.2",
    "scan.out_proj": "op.out_proj",
}
_FFN = {
    "conv": {"ffn.fc1": "convFFN.linear1", "ffn.dwconv": "convFFN.dwc", "ffn.fc2": "convFFN.linear2"},
    "mlp": {"ffn.fc1": "mlp.fc1", "ffn.fc2": "mlp.fc2"},
    "none": {},
}
# The authors' modules of a block, whatever the arch: ours.
THEIR_MODULES = {theirs: ours for names in (_BLOCK, *_FFN.values()) for ours, theirs in names.items()}
_CONV_1X1 = (".convFFN.linear1.weight", ".convFFN.linear2.weight")


class _Stored(NamedTuple):
    """How a tensor of a scan is stored: its name, and whether the axis of the sets is joined with the next one."""

    name: str
    joined: bool


# Ours, the authors' stacked layout, their flat one.
_SCAN = (
    (_Stored("x_proj.weight", True), _Stored("op.x_proj_weight", False), _Stored("op.x_proj.weight", True)),
    (_Stored("dt_weight", False), _Stored("op.dt_projs_weight", False), _Stored("op.dt_projs.weight", True)),
    (_Stored("dt_bias", False), _Stored("op.dt_projs_bias", False), _Stored("op.dt_projs_bias", False)),
    (_Stored("A_log", False), _Stored("op.A_logs", True), _Stored("op.A_logs", True)),
    (_Stored("skip", False), _Stored("op.Ds", True), _Stored("op.Ds", True)),
)


def is_flat(weights: Mapping[str, Tensor]) -> bool:
    """Whether weights with the authors' names are in their flat layout."""
    return any(name.endswith((".op.x_proj.weight", ".op.dt_projs.weight")) for name in weights)


def from_authors(weights: Mapping[str, Tensor], arch: Arch) -> dict[str, Tensor]:
    """Translate the authors' weights, stacked or flat, into ours.

    Args:
        weights: Those of a classifier (``patch_embed.*``, ``layers.*``, ``classifier.*``), or of a detector or
            segmentor (``backbone.patch_embed.*``, ``neck.*``, ...), whose other parts keep their names.
        arch: The arch that they are of.

    Returns:
        Ours, ``backbone.*`` and the rest; views of the given tensors, or copies.

    Raises:
        ValueError: A name is not one of this arch.
    """
    prefix = "backbone." if any(name.startswith("backbone.") for name in weights) else ""
    modules = {theirs: ours for ours, theirs in _modules(arch).items()}
    modules["classifier.norm"] = _last_norm(arch)
    scans = {}
    for ours, theirs, block in _blocks(arch):
        for our_tensor, *their_tensors in _SCAN:
            scans |= {theirs + tensor.name: (tensor, our_tensor, ours, block) for tensor in their_tensors}
    translated = {}
    for full_name, tensor in weights.items():
        if prefix and not full_name.startswith(prefix):
            translated[full_name] = tensor
            continue
        name = full_name.removeprefix(prefix)
        if not prefix and name.startswith("classifier.head."):
            translated[name.replace("classifier.head", "head.fc")] = as_linear(tensor)
        elif name in scans:
            translated |= {f"backbone.{ours}": part for ours, part in _cut(as_linear(tensor), *scans[name])}
        else:
            module, _, leaf = name.rpartition(".")
            if module not in modules:
                raise ValueError(f"{full_name} is no weight of this arch in the authors' layout")
            translated[f"backbone.{modules[module]}.{leaf}"] = as_linear(tensor)
    return translated


def to_authors(weights: Mapping[str, Tensor], arch: Arch, classifier: bool, flat: bool = False) -> dict[str, Tensor]:
    """Translate our weights into the authors', the inverse of :func:`from_authors`.

    Args:
        weights: Those of a whole model, ``backbone.*`` and the rest.
        arch: The arch that they are of.
        classifier: Whether they are a classifier's, whose names have no ``backbone.`` in the authors' files.
        flat: Whether to write VMamba's current layout instead of the stacked one, which VMamba reads, too.

    Returns:
        The authors'; views of the given tensors, or copies.

    Raises:
        ValueError: A name is not one of this arch.
    """
    prefix = "" if classifier else "backbone."
    modules = _modules(arch)
    if classifier:
        modules[_last_norm(arch)] = "classifier.norm"
    backbone = {name.removeprefix("backbone."): tensor for name, tensor in weights.items() if _in_backbone(name)}
    translated = {}
    for ours, theirs, block in _blocks(arch):
        for stored, stacked, flattened in _SCAN:
            written = flattened if flat else stacked
            parts = [(f"{ours}{scan}.{stored.name}", sets) for scan, sets in _scans(block)]
            if all(name in backbone for name, _ in parts):
                together = cat([_apart(backbone.pop(name), stored, sets) for name, sets in parts])
                translated[prefix + theirs + written.name] = together.flatten(0, 1) if written.joined else together
    for name, tensor in backbone.items():
        module, _, leaf = name.rpartition(".")
        if module not in modules:
            raise ValueError(f"backbone.{name} is no weight of this arch")
        theirs = f"{prefix}{modules[module]}.{leaf}"
        translated[theirs] = tensor[:, :, None, None] if theirs.endswith(_CONV_1X1) else tensor
    for name, tensor in weights.items():
        if not _in_backbone(name):
            translated[name.replace("head.fc", "classifier.head") if classifier else name] = tensor
    return translated


def as_linear(tensor: Tensor) -> Tensor:
    """Write the weight of a 1 x 1 convolution as that of a linear layer; other tensors stay as they are."""
    return tensor[:, :, 0, 0] if tensor.dim() == 4 and tensor.shape[2:] == (1, 1) else tensor


def _in_backbone(name: str) -> bool:
    return name.startswith("backbone.")


def _last_norm(arch: Arch) -> str:
    return f"out_norms.{len(arch.depths) - 1}"


def _blocks(arch: Arch) -> Iterator[tuple[str, str, BlockArch]]:
    """Walk over all blocks: what our names and the authors' begin with, and the settings."""
    for stage, (depth, block) in enumerate(zip(arch.depths, arch.blocks, strict=True)):
        for index in range(depth):
            yield f"stages.{stage}.blocks.{index}.", f"layers.{stage}.blocks.{index}.", block


def _modules(arch: Arch) -> dict[str, str]:
    """List the modules whose tensors have the same names and meaning in both: ours to the authors'."""
    names = {f"stem.{ours}": f"patch_embed.{theirs}" for ours, theirs in _STEM[arch.stem].items()}
    for stage in range(1, len(arch.depths)):
        for ours, theirs in _DOWNSAMPLE[arch.downsample].items():
            names[f"stages.{stage}.downsample.{ours}"] = f"layers.{stage - 1}.downsample.{theirs}"
    for our_block, their_block, block in _blocks(arch):
        for ours, theirs in {**_BLOCK, **_FFN[block.ffn]}.items():
            names[our_block + ours] = their_block + theirs
    return names | {f"out_norms.{stage}": f"outnorm{stage}" for stage in range(len(arch.depths))}


def _scans(block: BlockArch) -> list[tuple[str, int]]:
    """List the scans of a block in the order of the authors' parameter sets: our name, number of sets."""
    full, half = ("scan.full_scan", len(block.full_routes)), ("scan.half_scan", len(block.half_routes))
    if not block.full_routes or not block.half_routes:
        return [full if block.full_routes else half]
    half_carried = (half[0], 1)
    return [half_carried, full] if block.fusion == "norm_first" else [full, half_carried]


def _cut(
    tensor: Tensor, theirs: _Stored, ours: _Stored, our_block: str, block: BlockArch
) -> Iterator[tuple[str, Tensor]]:
    """Cut a tensor of all sets of a block into those of its scans, with our names."""
    scans, numbers = zip(*_scans(block), strict=True)
    for scan, part in zip(scans, _apart(tensor, theirs, sum(numbers)).split(numbers), strict=True):
        yield f"{our_block}{scan}.{ours.name}", part.flatten(0, 1) if ours.joined else part


def _apart(tensor: Tensor, stored: _Stored, sets: int) -> Tensor:
    """Give the sets an axis of their own, the first."""
    return tensor.unflatten(0, (sets, -1)) if stored.joined else tensor
