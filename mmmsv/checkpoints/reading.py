"""Read a checkpoint file, from a path, a URL or by its name, without running any code in it."""

import os
import pickle
import re
from collections import OrderedDict
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple
from urllib.parse import urlparse

import torch
from torch import Tensor

from mmmsv.compat.weights_only import load_weights_only
from mmmsv.messages import first_of, first_sentence
from mmmsv.weight_names import find_weights, without_wrappers

from .checksums import note
from .downloads import fetch, is_url
from .released import locate

# First bytes of what torch.save writes: a zip archive, or a pickle of protocol 2 and later.
_MAGIC = (b"PK\x03\x04", b"\x80")
# How names end that are of safetensors; there is an index where a checkpoint was cut into several files.
_INDEX = ".index.json"
_SAFETENSORS = (".safetensors", f".safetensors{_INDEX}")
# Of weights, and of counters beside them.
_DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64, torch.int8, torch.int32, torch.int64)


class Weights(NamedTuple):
    """The weights of a checkpoint, and which of its entries they are: ``'model_ema'``, ``'model'``, ..."""

    tensors: dict[str, Tensor]
    part: str


def read_checkpoint(source: str | os.PathLike) -> Mapping[str, object]:
    """Read a checkpoint, from a file or over HTTP; nothing in it is run.

    Args:
        source: A path; a URL (``http://``, ``https://``), whose file is kept in torch.hub's folder; ``authors://NAME``,
            for the file that the authors released for the config of that name; or ``authors://PATH_OR_URL``.

    Returns:
        What the file holds, on the CPU.

    Raises:
        TypeError: ``source`` is neither a string nor a path.
        ValueError: There is no such file, it is no whole checkpoint, or it holds more than plain data; in one line.
    """
    if not isinstance(source, (str, os.PathLike)):
        raise TypeError(f"checkpoint is a {type(source).__name__}, expected a path, a URL or authors://NAME")
    address = locate(str(source))
    if not is_url(address):
        return _read(Path(address))
    path, is_new = fetch(address)
    try:
        checkpoint = _read(path)
    except ValueError as error:
        if not is_new:
            raise ValueError(f"{error}. Remove {path}, and it is downloaded again") from error
        path.unlink(missing_ok=True)  # what cannot be read is fetched again next time
        raise
    note(path)
    return checkpoint


def is_of_safetensors(source: str) -> bool:
    """Whether a file is of safetensors by its content, or a URL or a file that is none of PyTorch's is by its name."""
    if is_url(source):
        return urlparse(source).path.lower().endswith(_SAFETENSORS)
    path = os.path.expanduser(source)
    if not os.path.isfile(path):
        return False
    start = _start_of(Path(path))
    return _holds_safetensors(start) or (not start.startswith(_MAGIC) and path.lower().endswith(_SAFETENSORS))


def _read(path: Path) -> Mapping[str, object]:
    try:
        path = path.expanduser()
        is_file, is_folder = path.is_file(), path.is_dir()
    except (OSError, RuntimeError) as error:  # a name that is too long, the home of an unknown user
        raise ValueError(f"the checkpoint {path} cannot be looked for ({first_sentence(error)})") from error
    if not is_file:
        what = "a folder" if is_folder else "not there"
        raise ValueError(f"the checkpoint {path} is {what}; give the path of a file, or its URL")
    shard = re.search(r"-\d{5}-of-(\d{5})\.", path.name)
    if path.name.lower().endswith(_INDEX) or (shard and int(shard[1]) > 1):
        what = "is one of the files" if shard else "lists the files"
        raise ValueError(
            f"{path} {what} that a checkpoint was cut into: read them with the program that wrote them, and save the "
            "weights as one file"
        )
    start = _start_of(path)
    if _holds_safetensors(start):
        return _read_safetensors(path)
    if not start.startswith(_MAGIC):
        if start.lstrip().startswith(b"<"):
            raise ValueError(f"{path} is a web page, no PyTorch checkpoint; get the file that the page links to")
        fault = f"begins with {start!r}" if start else "is empty"
        raise ValueError(f"{path} {fault}, so it is no PyTorch checkpoint: is it that file, and is it all of it?")
    try:
        # VMamba's training writes its settings beside the weights: a dict, which comes out as one.
        checkpoint = load_weights_only(path, also=[(OrderedDict, "yacs.config.CfgNode")])
    except pickle.UnpicklingError as error:
        asked = re.search(r"GLOBAL (\S+)", str(error))
        raise ValueError(
            f"{path} holds more than tensors and plain data ({asked[1] if asked else 'what, its pickle hides'}), or is "
            "damaged. It was not read, since that could run any code; ask its maker for the weights alone"
        ) from error
    except Exception as error:
        # What torch raises on bytes that are cut off or changed depends on where: anything, AssertionError included.
        what = "is a TorchScript archive, not weights" if "TorchScript" in str(error) else "is cut off or damaged"
        raise ValueError(f"{path} {what} ({first_sentence(error)}); get it again") from error
    if not isinstance(checkpoint, Mapping):
        raise ValueError(f"{path} holds a {type(checkpoint).__name__}, expected a dict with weights in it")
    return checkpoint


def _read_safetensors(path: Path) -> dict[str, Tensor]:
    try:
        from safetensors import SafetensorError
        from safetensors.torch import load_file
    except ImportError as error:
        raise ValueError(f"{path} is read by a library that is not installed: pip install safetensors") from error
    try:
        return load_file(path)
    except SafetensorError as error:
        raise ValueError(f"{path} is cut off or damaged ({first_sentence(error)}); get it again") from error


def _holds_safetensors(start: bytes) -> bool:
    """Whether a file begins as safetensors does: with the length of a header, and a JSON object."""
    return start[6:9] == b"\0\0{"


def _start_of(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            return file.read(16)
    except OSError as error:
        raise ValueError(f"{path} cannot be read ({first_sentence(error)})") from error


def weights_of(checkpoint: Mapping[str, object], source: str | os.PathLike) -> Weights:
    """Find the weights in a checkpoint, in whichever entry, and take off what wrappers add to their names.

    Args:
        checkpoint: What :func:`read_checkpoint` returned.
        source: Where it is from, for messages.

    Raises:
        ValueError: There are none, or those of several models, or what should be a tensor is none, or a tensor holds
            NaN or infinities.
    """
    found = find_weights(checkpoint)
    if not found:
        raise ValueError(
            f"{source} holds no weights of MSVMamba or VMamba, but {first_of(checkpoint) or 'nothing'}; give a file "
            "that holds the model's state_dict()"
        )
    if len(found) > 1:
        raise ValueError(
            f"{source} holds the weights of {len(found)} models ({first_of(found)}); save those of one in a file of "
            "their own"
        )
    ((part, tensors),) = found.items()
    others = [name for name, value in tensors.items() if not isinstance(name, str) or not isinstance(value, Tensor)]
    if others:
        raise ValueError(f"{source}: {first_of(others)} among the weights should be tensors with names, and are not")
    tensors = without_wrappers(tensors)
    if strange := [name for name, value in tensors.items() if not _is_plain(value)]:
        kind = f"{tensors[strange[0]].dtype}, {tensors[strange[0]].layout}, on {tensors[strange[0]].device}"
        raise ValueError(
            f"{source} holds a tensor of an unusual kind ({kind}) in {first_of(strange)}, expected dense ones"
        )
    if broken := [name for name, value in tensors.items() if not value.isfinite().all()]:
        raise ValueError(
            f"{source} holds NaN or infinite values in {first_of(broken)}; it is damaged, or its run diverged"
        )
    return Weights(dict(tensors), part or "weights by name")


def _is_plain(tensor: Tensor) -> bool:
    """Whether a tensor holds numbers that torch can calculate with: it is not sparse, nested, quantized or on meta."""
    return tensor.dtype in _DTYPES and tensor.layout is torch.strided and not tensor.is_nested and not tensor.is_meta
