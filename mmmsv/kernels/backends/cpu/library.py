"""The C++ library of ``csrc/``: which build of it is taken, why there is none, and how tensors are handed to it.

The library knows nothing of Python or torch (plain C, called through ctypes with addresses), so it fits every version
of both.
"""

import ctypes
import functools
import hashlib
from importlib.machinery import EXTENSION_SUFFIXES
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from .memory import let_malloc_keep_memory, scratch

# The library refers to these dtypes by index.
DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)
# The widest register holds 16 floats.
LANES = 16
# Gradients of weights are summed over images in at most 8 groups, which other numbers of threads do not change.
GROUPS = 8

_PLACE = Path(__file__).parents[4]
_REINSTALL = "install mmmsv again (pip install --force-reinstall --no-deps --no-cache-dir)"


class LibraryOp:
    """An op of the library, which takes its arguments as a struct.

    Args:
        forward: Computes its results.
        scratch: Returns how many numbers of scratch each thread needs for either.
        backward: Computes the gradients, where it has some.
    """

    def __init__(self, forward: Any, scratch: Any, backward: Any = None) -> None:
        self._forward, self._backward, self._scratch = forward, backward, scratch
        self._scratch.restype = ctypes.c_int64

    def forward(self, problem: ctypes.Structure, sums: Tensor) -> None:
        """Fill the results.

        Args:
            problem: The struct, with ``threads`` set; its ``scratch`` is set here.
            sums: Any tensor of the dtype of the sums, which is that of the scratch.
        """
        self._run(self._forward, problem, sums)

    def backward(self, problem: ctypes.Structure, sums: Tensor) -> None:
        """Fill the gradients; arguments of :meth:`forward`."""
        self._run(self._backward, problem, sums)

    def _run(self, function: Any, problem: ctypes.Structure, sums: Tensor) -> None:
        address = ctypes.byref(problem)
        with scratch.lend(problem.threads * self._scratch(address) * sums.element_size()) as problem.scratch:
            function(address)


class Library(NamedTuple):
    """The ops of the library, and what of them is faster than PyTorch's.

    Args:
        linear_most_rows: The most rows with which its linear layer is.
        blocks_are_faster: Whether blocks, and layers that lower the resolution, are in one call.
        multiplies_pairs: Whether products in bfloat16 are made of pairs, by an instruction of the processor.
    """

    scan: LibraryOp
    depthwise_conv: LibraryOp
    gate: LibraryOp
    merge: LibraryOp
    linear: LibraryOp
    blocks: LibraryOp
    downsampling: LibraryOp
    linear_most_rows: int
    blocks_are_faster: bool
    multiplies_pairs: bool


@functools.cache
def library_path() -> Path | None:
    """Return the library built for the best instructions of this processor; None where none was built."""
    # The capability is torch's own, so ATEN_CPU_CAPABILITY holds for both.
    fitting = {"AVX512": ("avx512", "avx2"), "AVX2": ("avx2",)}.get(torch.backends.cpu.get_cpu_capability(), ())
    for instructions in (*fitting, "baseline"):
        for suffix in EXTENSION_SUFFIXES:
            path = Path(__file__).with_name(f"_cpu_{instructions}{suffix}")
            if path.exists():
                return path
    return None


def load(path: Path) -> ctypes.CDLL:
    """Load a build of the library.

    Raises:
        OSError: The file is no library for this machine, or lacks an OpenMP runtime.
    """
    # OpenMP's symbols are left open in the library, and found in torch's copy of the runtime: with a second copy, the
    # threads of the one would spin while those of the other want to work.
    loaded = ctypes.CDLL(str(path))
    loaded.mmmsv_sources.restype = ctypes.c_int64
    return loaded


def sources() -> int:
    """Return the number that the sources beside this file give a library built from them (see setup.py)."""
    files = sorted(Path(__file__).with_name("csrc").iterdir())
    return int(hashlib.sha256(b"".join(path.read_bytes() for path in files)).hexdigest()[:15], 16)


@functools.cache
def library() -> Library | str:
    """Return the library, or why there is none; it is looked for once."""
    path = library_path()
    if path is None:
        return (
            "its C++ library was not built when mmmsv was installed, for lack of a compiler or because it failed; with "
            f"GCC at hand, {_REINSTALL}; or a checkout is imported that was never installed: {_PLACE}"
        )
    try:
        loaded = load(path)
        built_from = loaded.mmmsv_sources()
    except (OSError, AttributeError) as error:
        return (
            f"its C++ library does not load: {error}; it must not lie on a file system mounted with noexec, and on "
            f"Linux it takes GCC to build it; {_REINSTALL}"
        )
    try:
        beside_it = sources()
    except OSError as error:
        return f"its C++ library cannot be compared with the sources beside it: {error}; {_REINSTALL}"
    if built_from != beside_it:
        return f"its C++ library was built from other sources, {path.name}; {_REINSTALL}"
    let_malloc_keep_memory()
    return Library(
        LibraryOp(loaded.mmmsv_scan_forward, loaded.mmmsv_scan_scratch, loaded.mmmsv_scan_backward),
        LibraryOp(
            loaded.mmmsv_depthwise_conv_forward,
            loaded.mmmsv_depthwise_conv_scratch,
            loaded.mmmsv_depthwise_conv_backward,
        ),
        LibraryOp(loaded.mmmsv_gate_forward, loaded.mmmsv_gate_scratch, loaded.mmmsv_gate_backward),
        LibraryOp(loaded.mmmsv_merge_forward, loaded.mmmsv_merge_scratch, loaded.mmmsv_merge_backward),
        LibraryOp(loaded.mmmsv_linear_forward, loaded.mmmsv_linear_scratch),
        LibraryOp(loaded.mmmsv_blocks_forward, loaded.mmmsv_blocks_scratch),
        LibraryOp(loaded.mmmsv_downsampling_forward, loaded.mmmsv_downsampling_scratch),
        loaded.mmmsv_linear_most_rows(),
        bool(loaded.mmmsv_blocks_are_faster()),
        bool(loaded.mmmsv_linear_multiplies_pairs()),
    )


def why_not(device: torch.device) -> str | None:
    """Return why this backend cannot run on ``device``; None where it can."""
    if device.type != "cpu":
        return "it computes on CPUs only"
    loaded = library()
    return loaded if isinstance(loaded, str) else None


def choices() -> dict[str, str]:
    """Return what computes products and blocks on this processor."""
    found = loaded_library()
    rows, pairs = found.linear_most_rows, "pairs" if found.multiplies_pairs else "single numbers"
    return {
        "linear layers": (f"own product up to {rows} rows, oneDNN's beyond" if rows else "oneDNN's product")
        + " where large, MKL's where small; for gradients oneDNN's convolution",
        "inference of blocks": f"in one call, with own products; in bfloat16 of {pairs}"
        if found.blocks_are_faster
        else "layer by layer",
    }


def loaded_library() -> Library:
    """Return the library.

    Raises:
        RuntimeError: There is none; the message says why.
    """
    loaded = library()
    if isinstance(loaded, str):
        raise RuntimeError(f"backend 'cpu' cannot run: {loaded}")
    return loaded
