"""Convert the authors' checkpoint files to MMEngine's layout, and the other way round."""

import hashlib
import io
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from urllib.parse import urlparse

import torch
from torch import Tensor

from mmmsv import __version__
from mmmsv.messages import list_mismatches
from mmmsv.models import MSVMamba
from mmmsv.models.arch import Arch
from mmmsv.whole_files import write_whole

from .infer_arch import assumptions, infer_arch, name_of
from .matching import BACKBONE_NAMES, Match, has_our_names, is_classifier, match, of_backbone
from .reading import read_checkpoint, weights_of
from .released import SCHEME
from .releases import CURRENT, Release, check_release, from_current, release_of, to_current
from .translation import to_authors


def from_authors_file(source: str | os.PathLike) -> tuple[dict[str, Any], str]:
    """Make a checkpoint of MMEngine's out of one of the authors'.

    Args:
        source: Path or URL of a file of a classifier, detector or segmentor, or ``authors://NAME``.

    Returns:
        ``{"meta": ..., "state_dict": ...}``, for a whole model (``backbone.*``, and the head of a classifier as
        mmpretrain's ``head.fc.*``), and one line that describes it and says what is assumed of its routes.

    Raises:
        ValueError: The file cannot be read, or its weights are not those of one arch, whole.
    """
    checkpoint = read_checkpoint(source)
    weights, part = weights_of(checkpoint, source)
    release = release_of(weights)
    matched, arch = _match_alone(to_current(weights, release), source, release)
    meta = {
        "mmmsv_version": __version__,
        "arch": name_of(arch),
        "source": f"{_file_name(source)} ({part})",
        **_dataset_meta(checkpoint),
    }
    converted = {"meta": meta, "state_dict": _copied(matched.weights)}
    summary = f"{source} ({part}): {name_of(arch)}, {matched.summary()}"
    return converted, f"{summary}; assumed, since the file does not show it: {assumptions(arch)}"


def to_authors_file(
    source: str | os.PathLike, flat: bool = False, release: Release = CURRENT
) -> tuple[dict[str, object], str]:
    """Make a checkpoint as the authors write them out of one of MMEngine's.

    Args:
        source: Path or URL of a checkpoint of a whole model of mmpretrain, mmdet or mmseg.
        flat: Whether to write VMamba's current layout instead of the stacked one, which VMamba reads, too.
        release: Of VMamba, whose names to write; the current one reads the current ones.

    Returns:
        ``{"model": ...}`` for a classifier, ``{"state_dict": ..., "meta": ...}`` otherwise, and one line that
        describes it.

    Raises:
        ValueError: The file cannot be read, or its weights are not those of one arch, whole, or that release did not
            have this arch.
    """
    checkpoint = read_checkpoint(source)
    weights, part = weights_of(checkpoint, source)
    if any(name.removeprefix("backbone.").startswith("patch_embed.") for name in weights):
        raise ValueError(f"{source} has the authors' names already: convert it without --to-authors")
    if not any(name.startswith("backbone.stem.") for name in weights):
        raise ValueError(f"{source} holds no whole model with a backbone of mmmsv, so there is nothing to convert back")
    arch = _arch_of(weights, source)
    check_release(arch, release)
    stages = [i for i in range(len(arch.depths)) if f"backbone.out_norms.{i}.weight" in weights]
    expected = _backbone(weights, arch, stages)
    ours = {name: value for name, value in weights.items() if name.startswith("backbone.")}
    if mismatches := list_mismatches(expected, ours):
        raise ValueError(f"{source} is not whole: {'; '.join(mismatches)}")
    is_head = "head.fc.weight" in weights
    theirs = _copied(to_authors(weights, arch, is_head, flat))
    _match_alone(theirs, f"{source}, written as the authors do,")  # what could not come back is not written
    theirs = from_current(theirs, release)
    written: dict[str, object] = (
        {"model": theirs} if is_head else {"state_dict": theirs, "meta": _dataset_meta(checkpoint)}
    )
    return written, f"{source} ({part}): {name_of(arch)}, {len(theirs)} tensors"


def save_named_by_hash(checkpoint: Mapping[str, object], destination: str, source: str) -> Path:
    """Write a checkpoint with the first eight digits of its SHA-256 in its name, as OpenMMLab names its files.

    Args:
        checkpoint: What to write.
        destination: ``FOLDER/NAME.pth``, for ``FOLDER/NAME-0123abcd.pth``; or a folder, there already or ending in a
            slash, for a file named after the source.
        source: Where it is from.

    Returns:
        The path of the file, which is there whole or not at all.

    Raises:
        ValueError: It cannot be written there.
    """
    # Through memory: torch.save writes the name of the file into the file, and the hash would depend on it.
    buffer = io.BytesIO()
    torch.save(checkpoint, buffer)
    content = buffer.getvalue()
    try:
        path = Path(destination).expanduser()
        if path.is_dir() or destination.endswith("/"):
            path = path / _file_name(source)
        named = path.with_name(f"{path.stem}-{hashlib.sha256(content).hexdigest()[:8]}{path.suffix or '.pth'}")
        write_whole(named, content)
    except (OSError, RuntimeError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise ValueError(f"{destination} cannot be written ({reason}); give the path of a file, or a folder") from error
    return named


def _match_alone(
    weights: Mapping[str, Tensor], source: str | os.PathLike, release: Release = CURRENT
) -> tuple[Match, Arch]:
    """Translate the authors' weights for the model that their names and shapes imply."""
    if has_our_names(weights):
        raise ValueError(
            f"{source} has the names of this package already; --to-authors converts it back, and without {SCHEME} it "
            "loads as it is"
        )
    arch = _arch_of(weights, source)
    if is_classifier(weights):
        head = {name: value for name, value in weights.items() if name.startswith("classifier.head.")}
        head = {name.replace("classifier.head.", "head.fc."): value for name, value in head.items()}
        model = {**_backbone(weights, arch, [len(arch.depths) - 1]), **head}
    else:
        dense = any(name.startswith(("outnorm", "backbone.")) for name in weights)
        rest = {name: value for name, value in weights.items() if dense and not name.startswith(BACKBONE_NAMES)}
        model = {**_backbone(weights, arch, [*range(len(arch.depths))] if dense else []), **rest}
    return match(weights, model, arch, source, release), arch


def _arch_of(weights: Mapping[str, Tensor], source: str | os.PathLike) -> Arch:
    try:
        return infer_arch(of_backbone(weights))
    except ValueError as error:
        raise ValueError(f"{source}: {error}") from error


def _backbone(weights: Mapping[str, Tensor], arch: Arch, stages: list[int]) -> dict[str, Tensor]:
    """List the names, with shapes, that the backbone of an arch has, with output norms for some of its stages."""
    backbone = of_backbone(weights)
    first = next((backbone[name] for name in _FIRST_CONVOLUTIONS if name in backbone), None)
    in_channels = 3 if first is None or first.dim() != 4 else first.shape[1]
    with torch.device("meta"):
        model = MSVMamba(arch, in_channels=in_channels, out_indices=stages or [len(arch.depths) - 1])
    return {f"backbone.{name}": value for name, value in model.state_dict().items()}


_FIRST_CONVOLUTIONS = ("patch_embed.0.weight", "stem.conv.weight", "stem.conv1.weight")


def _file_name(source: str | os.PathLike) -> str:
    return Path(urlparse(source.removeprefix(SCHEME)).path if isinstance(source, str) else source).name


def _copied(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Copy views, with which torch.save would write all that they look into."""
    return {name: value.detach().clone(memory_format=torch.contiguous_format) for name, value in weights.items()}


def _dataset_meta(checkpoint: Mapping[str, object]) -> dict[str, object]:
    """Keep what mmdet and mmseg show classes by."""
    meta = checkpoint.get("meta")
    return {"dataset_meta": meta["dataset_meta"]} if isinstance(meta, Mapping) and "dataset_meta" in meta else {}
