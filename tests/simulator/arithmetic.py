"""Instructions that compute a register from others: arithmetic, logic, comparisons and choices, by name.

Sums, products, quotients and square roots are rounded as by a GPU. Exponentials and reciprocals are more exact than a
GPU's, which are off by a unit or two in the last place.
"""

import operator
from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from .ptx import Instruction
from .registers import F32, F64, TYPES, Value

Function = Callable[..., Value]


class Operation(NamedTuple):
    """A function of numbers, and the types of what it takes."""

    function: Function
    types: tuple[np.dtype, ...]


def operation(instruction: Instruction) -> Operation | None:
    """Look up what an instruction computes; None where it is none of those here."""
    name, *modifiers = instruction.opcode
    kind = modifiers[-1] if modifiers else ""
    if name == "setp":
        return _comparison(modifiers)
    dtype = TYPES.get(kind)
    if dtype is None:
        return None
    if name == "selp":
        return Operation(lambda one, other, which: np.where(which, one, other), (dtype, dtype, TYPES["pred"]))
    if name in ("mul", "mad") and dtype.kind in "iu":
        return _product(name, modifiers[0], dtype)
    if name in _SHIFTS:
        return Operation(_SHIFTS[name], (dtype, *(TYPES["u32"],) * (2 if name == "bfe" else 1)))
    table = _OF_FLOATS if dtype.kind == "f" else _OF_BITS
    if name not in table:
        return None
    operands, function = table[name]
    if "NaN" in modifiers:
        function = {"min": np.minimum, "max": np.maximum}[name]
    if "ftz" in modifiers:
        function = _flushing(function, dtype)
    return Operation(function, (dtype,) * operands)


# --- Floating point ---------------------------------------------------------------------------------------------------


def _fma(a: Value, b: Value, c: Value) -> Value:
    """Multiply and add in a wider type: only the last of two roundings counts, but for ties of it."""
    wide = np.float64 if a.dtype == F32 else np.longdouble
    return (a.astype(wide) * b.astype(wide) + c.astype(wide)).astype(a.dtype)


def _exactly(function: Function) -> Function:
    """Compute in float64."""
    return lambda value: function(value.astype(F64)).astype(value.dtype)


def _flushing(function: Function, dtype: np.dtype) -> Function:
    """Take numbers too small for a whole mantissa, and results like them, for 0."""
    tiny = np.finfo(dtype).tiny

    def flush(value: Value) -> Value:
        return np.where(np.abs(value) < tiny, np.copysign(dtype.type(0), value), value)

    return lambda *values: flush(function(*map(flush, values)))


_OF_FLOATS: dict[str, tuple[int, Function]] = {
    "mov": (1, lambda value: value),
    "add": (2, operator.add),
    "sub": (2, operator.sub),
    "mul": (2, operator.mul),
    "div": (2, operator.truediv),
    "fma": (3, _fma),
    "neg": (1, operator.neg),
    "abs": (1, np.abs),
    "min": (2, np.fmin),
    "max": (2, np.fmax),
    "sqrt": (1, np.sqrt),
    "rcp": (1, _exactly(np.reciprocal)),
    "ex2": (1, _exactly(np.exp2)),
}

# --- bfloat16: kept as whole numbers, since NumPy does not have it ----------------------------------------------------


def widen_bfloat16(bits: Value) -> Value:
    """Return bfloat16 numbers, given as uint16, in float32."""
    return (bits.astype(np.uint32) << np.uint32(16)).view(F32)


def round_to_bfloat16(value: Value) -> Value:
    """Return float32 numbers rounded to the nearest in bfloat16, ties to even, as uint16."""
    bits = value.view(np.uint32)
    rounded = (bits + np.uint32(0x7FFF) + ((bits >> np.uint32(16)) & np.uint32(1))) >> np.uint32(16)
    return np.where(np.isnan(value), np.uint16(0x7FFF), rounded.astype(np.uint16))


# --- Whole numbers and bits -------------------------------------------------------------------------------------------


def _quotient(a: Value, b: Value) -> Value:
    """Divide towards 0; by 0 gives any number."""
    b = np.where(b == 0, b.dtype.type(1), b)
    return np.where((a < 0) != (b < 0), -(np.abs(a) // np.abs(b)), np.abs(a) // np.abs(b)).astype(a.dtype)


def _product(name: str, part: str, dtype: np.dtype) -> Operation | None:
    """Multiply whole numbers: keep the lower or the upper half of the bits, or all of them; add a third number."""
    bits = 8 * dtype.itemsize
    wide = np.dtype(f"{dtype.kind}{2 * dtype.itemsize}") if bits < 64 else None
    if part != "lo" and wide is None:
        return None
    functions: dict[str, Function] = {
        "lo": operator.mul,
        "hi": lambda a, b: ((a.astype(wide) * b.astype(wide)) >> wide.type(bits)).astype(dtype),
        "wide": lambda a, b: a.astype(wide) * b.astype(wide),
    }
    product = functions[part]
    if name == "mul":
        return Operation(product, (dtype, dtype))
    return Operation(lambda a, b, c: product(a, b) + c, (dtype, dtype, wide if part == "wide" else dtype))


def _shift_left(value: Value, count: Value) -> Value:
    bits = 8 * value.dtype.itemsize
    shifted = np.left_shift(value, np.minimum(count, bits - 1).astype(value.dtype))
    return np.where(count < bits, shifted, value.dtype.type(0))


def _shift_right(value: Value, count: Value) -> Value:
    """Fill with the sign where there is one, with 0 elsewhere."""
    bits = 8 * value.dtype.itemsize
    shifted = np.right_shift(value, np.minimum(count, bits - 1).astype(value.dtype))
    return shifted if value.dtype.kind == "i" else np.where(count < bits, shifted, value.dtype.type(0))


def _extract(value: Value, position: Value, length: Value) -> Value:
    """Return so many of the 32 bits from a position on, the last one as the sign where there is one."""
    bits = np.uint32(32)
    return _shift_right(_shift_left(value, bits - position - length), bits - length)


_SHIFTS = {"shl": _shift_left, "shr": _shift_right, "bfe": _extract}

_OF_BITS: dict[str, tuple[int, Function]] = {
    "mov": (1, lambda value: value),
    "add": (2, operator.add),
    "sub": (2, operator.sub),
    "neg": (1, operator.neg),
    "abs": (1, np.abs),
    "min": (2, np.minimum),
    "max": (2, np.maximum),
    "div": (2, _quotient),
    "rem": (2, lambda a, b: a - _quotient(a, b) * b),
    "and": (2, operator.and_),
    "or": (2, operator.or_),
    "xor": (2, operator.xor),
    "not": (1, operator.invert),
}

# --- Comparisons ------------------------------------------------------------------------------------------------------

_COMPARISONS: dict[str, Function] = {
    "eq": operator.eq,
    "ne": lambda a, b: (a < b) | (a > b),
    "lt": operator.lt,
    "le": operator.le,
    "gt": operator.gt,
    "ge": operator.ge,
    # True where one is NaN.
    "equ": lambda a, b: ~((a < b) | (a > b)),
    "neu": operator.ne,
    "ltu": lambda a, b: ~(a >= b),
    "leu": lambda a, b: ~(a > b),
    "gtu": lambda a, b: ~(a <= b),
    "geu": lambda a, b: ~(a < b),
    "num": lambda a, b: (a == a) & (b == b),
    "nan": lambda a, b: (a != a) | (b != b),
}


def _comparison(modifiers: list[str]) -> Operation | None:
    compare, *others, kind = modifiers
    if kind not in TYPES or compare not in _COMPARISONS or others not in ([], ["ftz"]):
        return None
    return Operation(_COMPARISONS[compare], (TYPES[kind],) * 2)
