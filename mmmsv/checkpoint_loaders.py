"""Teach MMEngine to load the authors' files, to find our weights in files of other programs, and to read safetensors.

MMEngine looks for weights in ``state_dict`` or at the top of a file, under the names that the model has. So a file that
``torch.save({'model': torch.compile(model).state_dict()})`` wrote holds nothing for it. All its ways to a file
(``load_from``, ``init_cfg=dict(type='Pretrained')``, inferencers) pass through the loaders that are registered here.

``authors://NAME`` and ``authors://PATH_OR_URL`` are files in a layout of the authors', and become ones of MMEngine's.
"""

from collections.abc import Callable, Mapping
from functools import wraps

import torch
from mmengine.logging import print_log
from mmengine.runner import CheckpointLoader
from torch import Tensor

from .weight_names import find_weights, has_our_blocks, list_places, without_wrappers

_MapLocation = str | torch.device | dict[str, str] | Callable | None
_Loader = Callable[[str, _MapLocation], object]


def register_loaders() -> None:
    """Register :func:`load_from_authors` for ``authors://``, and put :func:`around` the loaders of files and URLs.

    These are MMEngine's own, or another's.
    """
    CheckpointLoader.register_scheme("authors://", load_from_authors, force=True)
    for scheme in ("", "http://", "https://"):
        CheckpointLoader.register_scheme(scheme, around(CheckpointLoader._schemes[scheme]), force=True)


def load_from_authors(filename: str, map_location: _MapLocation = None) -> dict[str, object]:
    """Load a file in a layout of the authors' as a checkpoint of MMEngine's.

    Args:
        filename: ``authors://NAME``, ``authors://PATH_OR_URL``, or a path or URL.
        map_location: As in ``torch.load``, for the weights.

    Returns:
        ``{"meta": ..., "state_dict": ...}``, as :func:`mmmsv.checkpoints.conversion.from_authors_file` makes it.

    Raises:
        ValueError: There is no such file, or it is in none of these layouts.
    """
    from .checkpoints.conversion import from_authors_file  # not above, as below

    checkpoint, summary = from_authors_file(filename)
    print_log(f"converted from the authors' layout: {summary}", "current")
    checkpoint["state_dict"] = _all_moved(checkpoint["state_dict"], map_location)
    return checkpoint


def around(loader: _Loader) -> _Loader:
    """Make a loader read safetensors files too, and put our weights where MMEngine looks for them.

    The direct link of a file that the authors released is loaded by :func:`load_from_authors`.

    Raises:
        ValueError: By the loader that is made, where a safetensors file cannot be read, or is one of several.
    """

    @wraps(loader)  # MMEngine logs its name
    def load(filename: str, map_location: _MapLocation = None) -> object:
        # Not above: it needs the models, and those need the registry, which registers the loaders.
        from .checkpoints.reading import is_of_safetensors, read_checkpoint
        from .checkpoints.released import is_released

        if is_released(filename):  # a direct link of a metafile
            return load_from_authors(filename, map_location)
        if is_of_safetensors(filename):
            return arrange(_all_moved(read_checkpoint(filename), map_location))
        return arrange(loader(filename, map_location))

    return load


def arrange(content: object) -> object:
    """Put our weights where MMEngine looks for them, under the names of the model; leave everything else alone.

    What MMEngine wrote itself stays as it is. Of what is before all names, only torch's own wrappers and Lightning's
    are taken off: a model of MMEngine's may hold its parts under one name, too.

    Args:
        content: Of a checkpoint file.

    Returns:
        The same object, or a dict with the weights as ``state_dict``.

    Raises:
        ValueError: Two names of weights become one.
    """
    if not isinstance(content, Mapping) or ("state_dict" in content and "meta" in content):
        return content
    found = {part: weights for part, weights in find_weights(content).items() if has_our_blocks(weights)}
    if len(found) != 1:
        return content
    ((part, weights),) = found.items()
    names = without_wrappers(weights, only_torch="pytorch-lightning_version" not in content)
    if names is weights and part in ("", "state_dict"):
        return content
    if part not in ("", "state_dict"):
        others = [place for place in list_places(names) if place not in ("", "backbone.")]
        where = f", with a backbone at {' and '.join(others)}" if others else ""
        print_log(f"of the checkpoint, {part} is loaded{where}", "current")
    return {**(content if part else {}), "state_dict": names}


def _all_moved(weights: Mapping[str, object], map_location: _MapLocation) -> dict[str, object]:
    return {name: _moved(value, map_location) for name, value in weights.items()}


def _moved(value: object, map_location: _MapLocation) -> object:
    """Move a tensor from the CPU as ``torch.load`` would."""
    if not isinstance(value, Tensor) or map_location is None:
        return value
    if isinstance(map_location, dict):
        return value.to(map_location.get("cpu", "cpu"))
    if isinstance(map_location, str | torch.device):
        return value.to(map_location)
    storage = map_location(value.untyped_storage(), "cpu")
    return value if storage is None else value.to(storage.device)
