"""Teach MMEngine to find our weights in files of other programs, and to read ``.safetensors`` files.

MMEngine looks for weights in ``state_dict`` or at the top of a file, under the names that the model has. So a file that
``torch.save({'model': torch.compile(model).state_dict()})`` wrote holds nothing for it. All its ways to a file
(``load_from``, ``init_cfg=dict(type='Pretrained')``, inferencers) pass through the loaders that are registered here.
"""

import os
from collections.abc import Callable, Mapping
from pathlib import Path

import torch
from mmengine.logging import print_log
from mmengine.runner import CheckpointLoader, checkpoint
from torch import Tensor

from .weight_names import find_weights, has_our_blocks, list_places, without_wrappers

_MapLocation = str | torch.device | Callable | None


def register_loaders() -> None:
    """Register the loaders below with MMEngine, in the place of its own for files and URLs."""
    CheckpointLoader.register_scheme("", load_from_local, force=True)
    CheckpointLoader.register_scheme(["http://", "https://"], load_from_http, force=True)


# MMEngine logs what these are called after "load_from_".
def load_from_local(filename: str, map_location: _MapLocation = None) -> object:
    """Load a file as MMEngine does, a ``.safetensors`` file too, and put our weights where MMEngine looks for them.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: A ``.safetensors`` file cannot be read.
    """
    if filename.endswith(".safetensors") and Path(filename).expanduser().is_file():
        return _load_safetensors(filename, map_location)
    return arrange(checkpoint.load_from_local(filename, map_location))


def load_from_http(filename: str, map_location: _MapLocation = None) -> object:
    """Load from a URL as :func:`load_from_local` does from a file."""
    if filename.partition("?")[0].endswith(".safetensors"):
        return _load_safetensors(filename, map_location)
    return arrange(checkpoint.load_from_http(filename, map_location))


def arrange(content: object) -> object:
    """Put our weights where MMEngine looks for them, under the names of the model; leave everything else alone.

    What MMEngine wrote itself stays as it is. Of what is before all names, only torch's own wrappers and Lightning's
    are taken off: a model of MMEngine's may hold its parts under one name, too.

    Args:
        content: Of a checkpoint file.

    Returns:
        The same object, or a dict with the weights as ``state_dict``.
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


def _load_safetensors(source: str | os.PathLike, map_location: _MapLocation) -> object:
    # Not above: it needs the models, and those need the registry, which registers the loaders.
    from .checkpoints.reading import read_checkpoint

    weights = read_checkpoint(source)
    if isinstance(map_location, str | torch.device):
        return arrange({name: v.to(map_location) for name, v in weights.items() if isinstance(v, Tensor)})
    return arrange(weights)
