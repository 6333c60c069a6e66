"""Puts the simulator in the place of a GPU: Triton compiles for one of compute capability 9.0 and launches here.

What Triton's assembler would make of the PTX of a kernel, registers and miscompilations with it, does not show.
"""

import functools
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from triton import knobs
from triton.backends.compiler import GPUTarget
from triton.backends.nvidia.compiler import CUDABackend
from triton.runtime import driver

from .machine import Kernel, Launch, simulate
from .registers import UNSIGNED, Value

_CAPABILITY = 90
_SHARED_MEMORY = 232448  # bytes that a program may have
_THREADS = 1024

# Where what was compiled for the simulator is kept.
_COMPILED = Path(__file__).parents[2] / "build" / "simulator"

# Launches of each kernel in this process, by name.
launches: Counter[str] = Counter()


def install() -> None:
    """Let Triton launch on CPU tensors from now on."""
    # The assembler's work: the kernel stays PTX.
    CUDABackend.make_cubin = lambda self, ptx, metadata, options, capability: ptx.encode()
    knobs.cache.dir = str(_COMPILED)
    driver.set_active(SimulatedGPU())


class SimulatedGPU:
    """What Triton asks of a GPU's driver."""

    def __init__(self) -> None:
        properties = {"max_shared_mem": _SHARED_MEMORY}
        self.utils = SimpleNamespace(get_device_properties=lambda device: properties, load_binary=_load)
        self.launcher_cls = _Launcher

    def get_current_target(self) -> GPUTarget:
        return GPUTarget("cuda", _CAPABILITY, 32)

    def get_current_device(self) -> int:
        return 0

    def get_current_stream(self, device: int) -> int:
        return 0


def _load(name: str, ptx: bytes, shared: int, device: int) -> tuple[None, str, int, int, int]:
    """Return, as Triton wants it, a module, a function, registers, spills, and threads that a program may have."""
    return None, ptx.decode(), 0, 0, _THREADS


# Triton keeps all functions; a translated one takes a thousand times the memory of its text.
_translated = functools.lru_cache(maxsize=16)(Kernel)


class _Launcher:
    """Launches a kernel with the arguments that its Python function has."""

    def __init__(self, source: Any, metadata: Any) -> None:
        self._kinds = list(source.signature.values())
        self._shared = metadata.shared

    def __call__(self, x: int, y: int, z: int, stream: int, ptx: str, *rest: Any) -> None:
        kernel, arguments = _translated(ptx), rest[4:]  # after Triton's metadata and hooks
        given = [each for each, kind in zip(arguments, self._kinds, strict=True) if kind != "constexpr"]
        parameters = _parameters(kernel.program.parameters, given)
        tensors = [each for each in given if isinstance(each, torch.Tensor)]
        launches[kernel.program.name] += 1
        if x * y * z:
            simulate(kernel, Launch((x, y, z), parameters, self._shared), tensors)


def _parameters(kinds: Mapping[str, str], given: list[object]) -> dict[str, Value]:
    """Return the bits of the parameters; the two that Triton adds, for scratch memory, point nowhere."""
    values = [*given, 0, 0]
    return {name: _bits(value, kind) for (name, kind), value in zip(kinds.items(), values, strict=True)}


def _bits(value: object, kind: str) -> Value:
    bits = int(kind[1:])
    unsigned = UNSIGNED[bits // 8]
    if kind[0] == "f":
        return np.array(value, f"f{bits // 8}").view(unsigned)[()]
    number = value.data_ptr() if isinstance(value, torch.Tensor) else int(value)
    if not -(1 << bits - 1) <= number < 1 << bits:
        raise OverflowError(f"{number} as a parameter of {bits} bits")
    return unsigned.type(number % (1 << bits))
