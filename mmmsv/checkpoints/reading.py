"""Reading a checkpoint file: from a path or a URL, without running anything that it holds."""

import os
import pickle
from collections import OrderedDict
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import NamedTuple
from urllib.parse import urlparse

import torch
from mmengine.dist import barrier, is_main_process
from torch import Tensor

# Of the weights that a file holds several times, the first of these.
_PARTS = ("model_ema", "model", "state_dict")
# First bytes of what torch.save writes: a zip archive, or a pickle of protocol 2 and later.
_MAGIC = (b"PK\x03\x04", b"\x80")


class Weights(NamedTuple):
    """The weights of a checkpoint, and which of its entries they are: ``'model_ema'``, ``'model'``, ..."""

    tensors: dict[str, Tensor]
    part: str


def read_checkpoint(source: str | os.PathLike) -> Mapping[str, object]:
    """Read a checkpoint, from a file or over HTTP; nothing in it is run.

    Args:
        source: A path, or a URL (``http://``, ``https://``), whose file is kept in torch.hub's folder.

    Returns:
        What the file holds, on the CPU.

    Raises:
        TypeError: ``source`` is neither a string nor a path.
        ValueError: There is no such file, it is no whole checkpoint, or it holds more than plain data; in one line.
    """
    if not isinstance(source, (str, os.PathLike)):
        raise TypeError(f"checkpoint is a {type(source).__name__}, expected a path or a URL")
    path = _downloaded(str(source)) if urlparse(str(source)).scheme in ("http", "https") else Path(source).expanduser()
    if not path.is_file():
        what = "a folder" if path.is_dir() else "not there"
        raise ValueError(f"the checkpoint {path} is {what}; give the path of a file, or its URL")
    with path.open("rb") as file:
        start = file.read(16)
    if not start.startswith(_MAGIC):
        told = f"begins with {start!r}" if start else "is empty"
        raise ValueError(f"{path} {told}, so it is no PyTorch checkpoint; is it that file, and is it all of it?")
    try:
        # VMamba's training writes its settings beside the weights: a dict, which comes out as one.
        with torch.serialization.safe_globals([(OrderedDict, "yacs.config.CfgNode")]):
            checkpoint = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise ValueError(
            f"{path} holds more than tensors and plain data, or is damaged ({_reason(error)}). It was not read, since "
            "that could run any code; ask its maker for the weights alone"
        ) from error
    except Exception as error:
        # What torch raises on bytes that are cut off or changed depends on where: anything, AssertionError included.
        raise ValueError(f"{path} is cut off or damaged ({_reason(error)}); download it again") from error
    if not isinstance(checkpoint, Mapping):
        raise ValueError(f"{path} holds a {type(checkpoint).__name__}, expected a dict with weights in it")
    return checkpoint


def weights_of(checkpoint: Mapping[str, object], source: str | os.PathLike) -> Weights:
    """Find the weights in a checkpoint: ``model_ema``, ``model``, ``state_dict``, or the checkpoint itself.

    Args:
        checkpoint: What :func:`read_checkpoint` returned.
        source: Where it is from, for messages.

    Raises:
        ValueError: There are none, or what should be a tensor is none, or a tensor holds NaN or infinities.
    """
    parts = (name for name in _PARTS if isinstance(checkpoint.get(name), Mapping) and len(checkpoint[name]) > 0)
    part = next(parts, None)
    tensors = checkpoint[part] if part else checkpoint
    if not any(isinstance(value, Tensor) for value in tensors.values()):
        raise ValueError(
            f"{source} holds no weights: neither {', '.join(_PARTS)} nor tensors by name, but {_some(checkpoint)}"
        )
    others = [name for name, value in tensors.items() if not isinstance(name, str) or not isinstance(value, Tensor)]
    if others:
        raise ValueError(f"{source}: {_some(others)} among the weights should be tensors with names, and are not")
    # Data-parallel training and moving averages put this in front of all names.
    if all(name.startswith("module.") for name in tensors):
        tensors = {name.removeprefix("module."): value for name, value in tensors.items()}
    if broken := [name for name, value in tensors.items() if not value.isfinite().all()]:
        raise ValueError(
            f"{source} holds NaN or infinite values in {_some(broken)}; it is damaged, or its run diverged"
        )
    return Weights(dict(tensors), part or "weights by name")


def _downloaded(url: str) -> Path:
    """Fetch a file, and keep it where torch.hub keeps its own."""
    path = Path(torch.hub.get_dir(), "checkpoints", Path(urlparse(url).path).name)
    if is_main_process():
        _fetch(url, path)
    barrier()
    _fetch(url, path)  # on another machine
    return path


def _fetch(url: str, path: Path) -> None:
    if path.is_file():
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        torch.hub.download_url_to_file(url, str(path))
    except OSError as error:
        raise ValueError(
            f"{url} could not be downloaded ({_reason(error)}); fetch it by other means, and give its path"
        ) from error


def _reason(error: Exception) -> str:
    """Give the telling line of an error; torch writes advice before it and behind it."""
    lines = [line.strip() for line in str(error).splitlines()]
    telling = [line for line in lines if line and not line.startswith(_ADVICE)]
    return telling[0][:200] if telling else type(error).__name__


_ADVICE = ("Weights only load failed", "Please file an issue", "Check the documentation")


def _some(names: Iterable[object], shown: int = 3) -> str:
    names = [str(name) for name in names]
    more = f", ... ({len(names)} in all)" if len(names) > shown else ""
    return ", ".join(names[:shown]) + more if names else "nothing"
