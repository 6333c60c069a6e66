"""The registers of all threads: what instructions read from them and how they write to them.

A register has a number for each thread, or one number where all threads have the same: the parameters of a kernel, and
what is computed from them alone. Its bits are kept as of the type that they were written as.
"""

from collections.abc import Callable
from typing import Any, TypeAlias

import numpy as np

from .ptx import Program

# A NumPy array of a number for each thread, or one NumPy number.
Value: TypeAlias = Any
Registers: TypeAlias = dict[str, Value]
Mask: TypeAlias = np.ndarray | None  # of the threads that execute an instruction; None: all
Read: TypeAlias = Callable[[Registers], Value]
# What an instruction does to a machine.
Step: TypeAlias = Callable[[Any, Mask], None]

BOOL = np.dtype(np.bool_)
UNSIGNED = {size: np.dtype(f"u{size}") for size in (1, 2, 4, 8)}  # by size in bytes
F16, F32, F64 = (np.dtype(f"f{size}") for size in (2, 4, 8))
TYPES = {
    "pred": BOOL,
    **{f"{kind}{8 * size}": unsigned for size, unsigned in UNSIGNED.items() for kind in "bu"},
    **{f"s{8 * size}": np.dtype(f"i{size}") for size in UNSIGNED},
    "f16": F16,
    "f32": F32,
    "f64": F64,
}


def size_of(register: str, program: Program) -> int:
    """Return the bytes of a register, or of a special one, which has no declaration."""
    return program.bits.get(register.rstrip("0123456789"), 32) // 8


def reader(text: str, dtype: np.dtype, program: Program) -> Read:
    """Return a function that reads an operand, a register or a constant, as numbers of a type."""
    if not text.startswith("%") and text[0] in "-0123456789":
        constant = _constant(text, dtype)
        return lambda registers: constant
    size = size_of(text, program)
    if dtype == BOOL or size == dtype.itemsize:

        def read(registers: Registers) -> Value:
            value = registers[text]
            return value if value.dtype is dtype else value.view(dtype)

    else:
        whole, part = UNSIGNED[size], UNSIGNED[dtype.itemsize]

        def read(registers: Registers) -> Value:
            return registers[text].view(whole).astype(part).view(dtype)

    return read


def _constant(text: str, dtype: np.dtype) -> Value:
    if dtype == BOOL:
        return np.bool_(int(text))
    bits = int(text[2:], 16) if text[:2] in ("0f", "0d") else int(text.rstrip("U"), 0)
    return np.array(bits & ((1 << 8 * dtype.itemsize) - 1), UNSIGNED[dtype.itemsize]).view(dtype)[()]


def write(registers: Registers, name: str, value: Value, mask: Mask) -> None:
    """Give a register a new value in the threads of a mask."""
    if mask is not None:
        old = registers.get(name)
        value = np.where(mask, value, value.dtype.type(0) if old is None else old.view(value.dtype))
    registers[name] = value
