"""Make checkpoints written by MMEngine load under torch's ``weights_only`` default.

Since torch 2.6 ``torch.load`` builds nothing from a checkpoint but tensors, containers and what was registered as
safe. MMEngine 0.10 stores its message hub beside the weights: HistoryBuffers with NumPy arrays, scores as NumPy
scalars. Hence ``mim test`` and ``--resume`` fail on its own checkpoints ("Unsupported global: GLOBAL
mmengine.logging.history_buffer.HistoryBuffer").

Registering those classes as they are would open the door to a prepared file:

- a HistoryBuffer pickles its methods through ``getattr``, with which any function of any module can be reached;
- ``numpy.dtype.__setstate__`` checks nothing: a forged state corrupts the memory of the interpreter.

So what is registered, under the names in the files, are stand-ins that check what they are given and build
the plain object: numbers, strings and arrays of them, HistoryBuffers with their own methods, and the annealing function
that a OneCycleLR keeps. Whatever else a file asks for is refused with ``pickle.UnpicklingError`` before it is built.

They are registered when ``mmmsv`` is imported, so this file needs torch and NumPy alone: MMEngine is imported where a
file names a class of it.
"""

import contextlib
import math
import re
from collections.abc import Callable
from importlib import metadata
from pickle import UnpicklingError
from typing import Any, NoReturn

import numpy as np
import torch

# The methods that every HistoryBuffer registers for itself, and with which it is pickled.
_STATISTICS = ("min", "max", "current", "mean")
# Booleans, integers, floats, complex numbers, strings and bytes: types whose values are nothing but their bytes.
_PLAIN_TYPE = re.compile(r"[biufcUS][0-9]{1,9}")


class _DType:
    """Stands for a ``numpy.dtype`` while a file is read; ``np.dtype(x)`` gives the true one."""

    def __init__(self, spec: str, align: bool = False, copy: bool = False) -> None:
        if not isinstance(spec, str) or not _PLAIN_TYPE.fullmatch(spec):
            raise UnpicklingError(f"a checkpoint may hold NumPy numbers and strings, not NumPy data of type {spec!r}")
        try:
            self.dtype = np.dtype(spec)
        except TypeError as error:
            raise UnpicklingError(f"NumPy knows no type {spec!r}") from error

    def __setstate__(self, state: tuple) -> None:
        """Take the byte order out of NumPy's ``(version, order, subtype, names, fields, size, alignment, flags)``."""
        # The rest of a plain type's state follows from its name, which is checked: it is not looked at.
        is_plain = isinstance(state, tuple) and len(state) == 8 and all(part is None for part in state[2:5])
        if not is_plain or type(state[1]) is not str or state[1] not in ("<", ">", "=", "|"):
            raise UnpicklingError(f"not the state of a plain NumPy type: {state!r:.200}")
        self.dtype = self.dtype.newbyteorder(state[1])


class _Array(np.ndarray):
    """An array that was read from a file, made by a checked state only; pickles as a plain array."""

    # No arguments: those of np.ndarray would let a file make an array that looks into the memory of another.
    def __new__(cls) -> "_Array":
        return super().__new__(cls, (0,), np.uint8)

    def __setstate__(self, state: tuple) -> None:
        """Take NumPy's ``(version, shape, dtype, is_fortran, data)``."""
        if not isinstance(state, tuple) or len(state) != 5:
            raise UnpicklingError(f"not the state of a NumPy array: {state!r:.200}")
        _, shape, dtype, is_fortran, data = state
        dtype = _true_dtype(dtype)
        sides_are_sizes = isinstance(shape, tuple) and all(type(side) is int and side >= 0 for side in shape)
        if not sides_are_sizes or type(data) is not bytes or math.prod(shape) * dtype.itemsize != len(data):
            raise UnpicklingError(f"the data of a NumPy array do not fit shape {shape!r} and type {dtype}")
        if self.size:
            raise UnpicklingError("a NumPy array in the checkpoint is given its data twice")
        # pyrefly: ignore[bad-argument-type]: NumPy's stub means its own bool, and the state holds Python's
        super().__setstate__((1, shape, dtype, bool(is_fortran), data))

    def __reduce__(self) -> str | tuple:
        return np.array(self).__reduce__()


class _HistoryBuffer:
    """Becomes MMEngine's HistoryBuffer as soon as its state was checked."""

    @staticmethod
    def stands_for() -> type:
        """Import the class of MMEngine that this one stands for."""
        from mmengine.logging import HistoryBuffer

        return HistoryBuffer

    def __setstate__(self, state: dict[str, Any]) -> None:
        expected = {"max_length", "_log_history", "_count_history"}
        if not isinstance(state, dict) or not expected <= set(state) <= expected | {"statistics_methods"}:
            raise UnpicklingError("not the state of a HistoryBuffer")
        owner = self.stands_for()
        own_methods = {name: getattr(owner, name) for name in _STATISTICS}
        methods = state.get("statistics_methods", {})
        if not isinstance(methods, dict) or any(own_methods.get(name) is not methods[name] for name in methods):
            raise UnpicklingError("a HistoryBuffer in the checkpoint holds statistics methods that are not its own")
        histories = {name: state[name] for name in ("_log_history", "_count_history")}
        if type(state["max_length"]) is not int or not all(isinstance(h, np.ndarray) for h in histories.values()):
            raise UnpicklingError("not the state of a HistoryBuffer")
        self.__class__ = owner
        self.__setstate__(
            {
                "max_length": state["max_length"],
                "statistics_methods": dict(methods),
                **{name: np.array(history) for name, history in histories.items()},
            }
        )


def _true_dtype(dtype: _DType) -> np.dtype:
    # A forged state can put anything into an object's attributes.
    if type(dtype) is _DType and isinstance(vars(dtype).get("dtype"), np.dtype):
        return dtype.dtype
    raise UnpicklingError(f"expected a plain NumPy type, got {type(dtype).__name__}")


def _reconstruct(subtype: type, shape: tuple, typecode: bytes) -> _Array:
    """Stand in for NumPy's function of this name, which begins an array."""
    # NumPy writes (ndarray, (0,), b"b") whatever the array is: its shape and type come with the state.
    if subtype is not _Array or type(shape) is not tuple or shape != (0,) or type(typecode) is not bytes:
        raise UnpicklingError("not the way NumPy writes an array")
    return _Array()


def _scalar(dtype: _DType, data: bytes) -> np.generic:
    """Stand in for NumPy's function of this name, which makes a scalar of its bytes."""
    true = _true_dtype(dtype)
    if type(data) is not bytes or len(data) != true.itemsize:
        raise UnpicklingError(f"the data of a NumPy scalar do not fit type {true}")
    return np.ndarray((1,), true, buffer=data)[0]


def _bytes() -> bytes:
    """Stand in for ``bytes``: that is how empty bytes, and with them empty arrays, are pickled."""
    return b""


class _OneCycle:
    """Stands for OneCycleParamScheduler, of whose state one static method is a part; never becomes one."""

    @staticmethod
    def stands_for() -> type:
        """Import the class of MMEngine that this one stands for."""
        from mmengine.optim import OneCycleParamScheduler

        return OneCycleParamScheduler

    # An instance without a checked state could be turned into one of the classes above by its `__class__`.
    def __new__(cls) -> NoReturn:
        raise UnpicklingError("a checkpoint may name OneCycleParamScheduler, and make none")


_METHODS: dict[type, tuple[str, ...]] = {
    _HistoryBuffer: _STATISTICS,
    _OneCycle: ("_annealing_cos", "_annealing_linear"),
}


def _method(owner: type, name: str) -> Callable:
    """Stand in for ``getattr``: serve the statistics methods of HistoryBuffer and nothing else."""
    if type(owner) is type and type(name) is str and name in _METHODS.get(owner, ()):
        return getattr(owner.stands_for(), name)
    raise UnpicklingError(
        f"the checkpoint asks for getattr({owner!r:.200}, {name!r:.200}), which could run any code: only "
        f"{', '.join(_STATISTICS)} of HistoryBuffer, and the annealing of OneCycleLR, are allowed"
    )


# Whether torch takes a list of what is safe, with names; 2.6 and, in NVIDIA's containers, what came just before it.
TAKES_SAFE_GLOBALS = torch.__version__ >= "2.6.0.dev0"
# NumPy 2 moved numpy.core to numpy._core: a checkpoint has the name of the version that wrote it.
_NUMPY_CORES = ("numpy.core.multiarray", "numpy._core.multiarray")
# Stand-ins, each with the name that it answers to in a file.
SAFE_GLOBALS: tuple[tuple[Callable, str], ...] = (
    (_HistoryBuffer, "mmengine.logging.history_buffer.HistoryBuffer"),
    (_method, "builtins.getattr"),
    (_OneCycle, "mmengine.optim.scheduler.param_scheduler.OneCycleParamScheduler"),
    (_bytes, "builtins.bytes"),
    (_DType, "numpy.dtype"),
    (_Array, "numpy.ndarray"),
    *((_reconstruct, f"{core}._reconstruct") for core in _NUMPY_CORES),
    *((_scalar, f"{core}.scalar") for core in _NUMPY_CORES),
)


def allow_mmengine_checkpoints() -> None:
    """Register what MMEngine's checkpoints hold with ``torch.load``; called when ``mmmsv`` is imported.

    Does nothing with torch before 2.6, which reads MMEngine's checkpoints as it is: it builds whatever a file asks for.
    """
    if not TAKES_SAFE_GLOBALS:
        return
    torch.serialization.add_safe_globals(list(SAFE_GLOBALS))
    # The maintained fork of MMEngine allows the types themselves while it loads. Then some names would be theirs and
    # the others the stand-ins', and chance would decide which. Where it cannot be imported, it loads nothing.
    if any(metadata.distributions(name="onedl-mmengine")):
        with contextlib.suppress(ImportError):
            from mmengine.runner import checkpoint

            # pyrefly: ignore[missing-attribute]: the fork has it, and MMEngine has not
            checkpoint.get_torch_safe_globals = list
