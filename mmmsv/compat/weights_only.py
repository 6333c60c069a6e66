"""Load plain data only, also with torch before 2.6, whose ``weights_only`` takes no list of safe types.

There it also runs TorchScript archives, and cannot build what MMEngine puts into its checkpoints. Once 2.6 is the
oldest torch that is supported, this file is the first two lines of :func:`load_weights_only`.
"""

import pickle
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar, NoReturn

import torch
from torch import serialization

from .mmengine_checkpoints import SAFE_GLOBALS, TAKES_SAFE_GLOBALS


def load_weights_only(path: Path, also: Sequence[tuple[type, str]] = ()) -> object:
    """Load a checkpoint to the CPU: tensors, containers, numbers, strings, and what MMEngine puts beside weights.

    Args:
        path: The file.
        also: Types, each with its name in the file.

    Raises:
        pickle.UnpicklingError: It asks for more; nothing of that was run.
        Exception: It is damaged; which exception depends on where.
    """
    if TAKES_SAFE_GLOBALS:
        with serialization.safe_globals(list(also)):
            return torch.load(path, map_location="cpu", weights_only=True)

    class Unpickler(_Unpickler):
        allowed: ClassVar = {
            **torch._weights_only_unpickler._get_allowed_globals(),
            "_codecs.encode": _encode,
            "builtins.set": set,
            "collections.Counter": Counter,
            **{name: stand_in for stand_in, name in (*SAFE_GLOBALS, *also)},
        }

    def load(*arguments: object, **options: object) -> object:
        return Unpickler(*arguments, **options).load()

    with path.open("rb") as file:
        if serialization._is_zipfile(file):
            with serialization._open_zipfile_reader(file) as archive:
                if serialization._is_torchscript_zip(archive):
                    raise RuntimeError("TorchScript archives are programs")
            file.seek(0)
        module = SimpleNamespace(__name__=__name__, Unpickler=Unpickler, load=load)
        return torch.load(file, map_location="cpu", pickle_module=module, weights_only=False)


def _encode(text: str, encoding: str) -> bytes:
    """Stand in for ``codecs.encode``, with which bytes are pickled."""
    if type(text) is not str or encoding != "latin1":
        raise pickle.UnpicklingError("not the way bytes are pickled")
    return text.encode("latin1")


# Python's own unpickler as it is written in Python: the one in C has no hooks for what is called and what is changed.
# typeshed does not declare these hooks.
_PythonUnpickler: Any = pickle._Unpickler


class _Unpickler(_PythonUnpickler):
    """Calls nothing but what ``allowed`` names, changes nothing but what it made, and refuses the rest."""

    allowed: ClassVar[dict[str, Any]]

    def find_class(self, module: str, name: str) -> object:
        full = f"{'builtins' if module == '__builtin__' else module}.{name}"
        if full not in self.allowed:
            raise pickle.UnpicklingError(f"Unsupported global: GLOBAL {full} was not an allowed global")
        return self.allowed[full]

    def _check(self, value: object) -> None:
        if not any(value is one for one in self.allowed.values()):
            raise pickle.UnpicklingError(f"the checkpoint calls, or changes, what it may not: {value!r:.200}")

    def load_reduce(self) -> None:
        self._check(self.stack[-2])
        super().load_reduce()

    def load_newobj(self) -> None:
        self._check(self.stack[-2])
        super().load_newobj()

    def load_build(self) -> None:
        # Objects of allowed types, that is. The state of a function or a class could be anything, up to its code.
        self._check(type(self.stack[-2]))
        super().load_build()

    def refuse(self) -> NoReturn:
        raise pickle.UnpicklingError("the checkpoint holds an instruction that plain data have no use for")

    dispatch: ClassVar = {
        **_PythonUnpickler.dispatch,
        pickle.REDUCE[0]: load_reduce,
        pickle.NEWOBJ[0]: load_newobj,
        pickle.BUILD[0]: load_build,
        **dict.fromkeys(b"".join((pickle.INST, pickle.OBJ, pickle.NEWOBJ_EX)), refuse),
        **dict.fromkeys(b"".join((pickle.EXT1, pickle.EXT2, pickle.EXT4)), refuse),
    }
