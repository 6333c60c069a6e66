"""How tests are named, and what a run of them reports."""

import dataclasses

import torch

_LONGEST_NAME = 60


def pytest_make_parametrize_id(val, argname):
    """Name values in the ids of tests so that they can be read and typed: ``float32-size=5x3-carry=True``."""
    if val is None or isinstance(val, bool | int | float):
        return f"{argname}={val}"
    if getattr(val, "__name__", "") == "<lambda>":
        return argname
    name = _name(val)
    return name if name is None or len(name) <= _LONGEST_NAME else None


def _name(val):
    if isinstance(val, torch.dtype):
        return str(val).removeprefix("torch.")
    if isinstance(val, torch.Tensor):
        return _name((*val.shape, val.dtype))
    if dataclasses.is_dataclass(val):
        return str(val)
    if isinstance(val, dict):
        return ",".join(f"{key}={_name(each) or each}" for key, each in val.items())
    if isinstance(val, tuple | list):
        separator = "x" if isinstance(val, tuple) and all(type(each) is int for each in val) else ","
        return separator.join(str(_name(each) or each) for each in val)
    return None
