"""Write MMEngine's checkpoints as plain data, which ``torch.load`` reads where nothing of this package was imported.

Since torch 2.6 ``torch.load`` builds tensors, containers, numbers and strings, and refuses the rest. MMEngine 0.10 has
more in its checkpoints: HistoryBuffers, NumPy's arrays and scalars, functions of schedules. Hence tools that read a
checkpoint before any model of this package is built, such as inferencers and ``publish_model``, fail on it.

:func:`make_plain` puts plain data in their place, and notes in ``meta`` what each was; :func:`restore` undoes it.
MMEngine resumes from plain data by itself, too: it warns that it skips histories, and begins new ones.
"""

import copy
import inspect
from collections import OrderedDict
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from mmengine.config import ConfigDict
from mmengine.logging import HistoryBuffer
from torch import Tensor

# The key in `meta`: for each type of object the paths of those that were made plain, each a tuple of keys and indices.
NOTE = "made_plain"
# NumPy's letters for booleans, integers, floats and complex numbers, which tensors can hold, and for strings.
_PLAIN = "?bBhHiIlLqQefdFDU"


def make_plain(checkpoint: dict[str, Any]) -> None:
    """Replace NumPy values, HistoryBuffers and ConfigDicts by tensors, lists, dicts and Python's own numbers.

    The functions in the states of schedules, of which OneCycleLR has one, are left out: a schedule has them from its
    config. Types that are not named here stay, and ``torch.load`` may refuse them.

    Args:
        checkpoint: What a runner is about to save. Its entries are replaced; what they hold is not changed.
    """
    if "param_schedulers" in checkpoint:
        checkpoint["param_schedulers"] = _without_functions(checkpoint["param_schedulers"])
    before = checkpoint.get("meta", {}).get(NOTE, {})  # of an earlier call, after which something was added
    made_plain = {kind: [*before.get(kind, ())] for kind in ("generic", "ndarray", "HistoryBuffer", "ConfigDict")}
    checkpoint.update(_plain(dict(checkpoint), (), made_plain))
    checkpoint["meta"] = {**checkpoint.get("meta", {}), NOTE: made_plain}


def restore(checkpoint: dict[str, Any]) -> None:
    """Undo :func:`make_plain`; a checkpoint that it has not made is left as it is.

    Args:
        checkpoint: What was loaded; it is changed. Parts that a tool has removed are passed over.

    Raises:
        ValueError: The note in ``meta`` does not fit the data.
    """
    meta = checkpoint.get("meta")
    if not isinstance(meta, dict) or NOTE not in meta:
        return
    made_plain = meta.pop(NOTE)
    try:
        for path, dtype in made_plain["generic"]:
            _replace(checkpoint, path, lambda value, dtype=dtype: _dtype(dtype).type(value))
        for path, dtype, shape in made_plain["ndarray"]:
            _replace(checkpoint, path, lambda value, dtype=dtype, shape=shape: _array(value, dtype, shape))
        for path in made_plain["HistoryBuffer"]:
            _replace(checkpoint, path, _history)
        for path in made_plain["ConfigDict"]:
            _replace(checkpoint, path, ConfigDict)
    except (ArithmeticError, AssertionError, AttributeError, LookupError, RuntimeError, TypeError, ValueError) as error:
        raise ValueError(
            f"meta[{NOTE!r}] of this checkpoint, by which NumPy values and histories are restored, does not fit its "
            f"data ({error!r:.200}): the file was changed after it was written. Resume from another one"
        ) from error


def _without_functions(states: object) -> object:
    if type(states) is list:
        return [_without_functions(state) for state in states]
    if type(states) is dict:
        return {key: _without_functions(part) for key, part in states.items() if not inspect.isfunction(part)}
    return states


def _plain(value: Any, path: tuple, made_plain: dict[str, list]) -> Any:
    """Return a plain copy of what is not plain, and the value itself where all of it is."""
    if isinstance(value, np.generic) and value.dtype.char in _PLAIN:
        made_plain["generic"].append((path, value.dtype.str))
        return value.item()
    if type(value) is np.ndarray and value.dtype.char in _PLAIN:
        made_plain["ndarray"].append((path, value.dtype.str, value.shape))
        return _tensor_or_list(value)
    if type(value) is HistoryBuffer:
        made_plain["HistoryBuffer"].append(path)
        log, count = map(_tensor_or_list, value.data)
        return {"log_history": log, "count_history": count, "max_length": value.max_length}
    if type(value) is ConfigDict:
        made_plain["ConfigDict"].append(path)
        return _plain(dict(value.items()), path, made_plain)
    if type(value) in (dict, OrderedDict):
        # A key is equal to the number or string that NumPy made it of, and is not noted.
        keys = {key: key.item() if isinstance(key, np.generic) else key for key in value}
        parts = {keys[key]: _plain(part, (*path, keys[key]), made_plain) for key, part in value.items()}
        if all(key is keys[key] and part is parts[key] for key, part in value.items()):
            return value
        plain = copy.copy(value)  # with the attributes of an OrderedDict, such as the versions in a state_dict
        plain.clear()
        plain.update(parts)
        return plain
    if type(value) in (list, tuple):
        parts = [_plain(part, (*path, i), made_plain) for i, part in enumerate(value)]
        return value if all(part is old for part, old in zip(parts, value, strict=True)) else type(value)(parts)
    return value


def _tensor_or_list(array: np.ndarray) -> Tensor | list:
    native = np.array(array, dtype=array.dtype.newbyteorder("="), order="C")
    try:
        return torch.from_numpy(native)
    except TypeError:  # strings; before torch 2.3 large unsigned integers, too
        return native.tolist()


def _replace(parts: Any, path: tuple, build: Callable[[Any], Any]) -> Any:
    """Return ``parts`` with what is at ``path`` built anew; tuples are copied, the rest is changed."""
    if not path:
        return build(parts)
    key = path[0]
    if isinstance(parts, dict) and key not in parts:
        return parts
    part = _replace(parts[key], path[1:], build)
    if isinstance(parts, tuple):
        return (*parts[:key], part, *parts[key + 1 :])
    parts[key] = part
    return parts


def _dtype(name: str) -> np.dtype:
    dtype = np.dtype(name)
    if dtype.char not in _PLAIN:
        raise ValueError(f"{name!r} is no type of plain numbers or strings")
    return dtype


def _array(value: Tensor | list, name: str, shape: tuple) -> np.ndarray:
    array, dtype = _from_tensor_or_list(value), _dtype(name)
    if dtype.kind == "U" and array.size and dtype.itemsize > max(array.itemsize, 4):
        raise ValueError(f"{name!r} has room for longer strings than there are")
    return array.astype(dtype).reshape(shape)


def _history(parts: dict[str, Any]) -> HistoryBuffer:
    log, count = (_from_tensor_or_list(parts[name]) for name in ("log_history", "count_history"))
    # pyrefly: ignore[bad-argument-type]: it says sequences, and makes arrays of them
    return HistoryBuffer(log, count, parts["max_length"])


def _from_tensor_or_list(value: Tensor | list) -> np.ndarray:
    return value.cpu().numpy() if isinstance(value, Tensor) else np.array(value)
