"""Conversions between types, and moves between registers of different sizes."""

import re

import numpy as np

from .arithmetic import Function, Operation, round_to_bfloat16, widen_bfloat16
from .ptx import Instruction
from .registers import F32, TYPES, UNSIGNED, Value

_ROUNDINGS: dict[str, Function] = {"rni": np.rint, "rzi": np.trunc, "rmi": np.floor, "rpi": np.ceil}


def conversion(instruction: Instruction) -> Operation:
    """Look up what ``cvt`` computes."""
    *modifiers, to, given = instruction.opcode[1:]
    if set(modifiers) - {"rn", "ftz", *_ROUNDINGS}:
        raise instruction.unknown()
    rounding = next((_ROUNDINGS[each] for each in modifiers if each in _ROUNDINGS), None)
    if to in ("bf16x2", "f16x2") and given == "f32":
        narrow = round_to_bfloat16 if to == "bf16x2" else _round_to_float16
        return Operation(lambda high, low: _joined((narrow(low), narrow(high)), UNSIGNED[4]), (F32, F32))
    if to == "bf16" and given == "f32":
        return Operation(round_to_bfloat16, (F32,))
    if to == "f32" and given == "bf16":
        return Operation(widen_bfloat16, (UNSIGNED[2],))
    if to not in TYPES or given not in TYPES:
        raise instruction.unknown()
    return Operation(_between(TYPES[given], TYPES[to], rounding), (TYPES[given],))


def _between(given: np.dtype, to: np.dtype, rounding: Function | None) -> Function:
    if to.kind == "f":
        return lambda value: (rounding(value) if rounding else value).astype(to)
    if given.kind != "f":
        return lambda value: value.astype(to)
    least, most = float(np.iinfo(to).min), float(np.iinfo(to).max)
    whole = rounding or np.trunc
    # Beyond the type its last number, for NaN 0.
    return lambda value: np.clip(np.nan_to_num(whole(value).astype(np.float64)), least, most).astype(to)


def _round_to_float16(value: Value) -> Value:
    return value.astype(np.float16).view(np.uint16)


def _joined(parts: tuple[Value, ...], whole: np.dtype) -> Value:
    """Put numbers beside each other in one, the first into the lowest bits."""
    joined, bits = whole.type(0), 8 * whole.itemsize // len(parts)
    for number, part in enumerate(parts):
        joined = joined | (part.astype(whole) << whole.type(bits * number))
    return joined


def names_in(operand: str) -> list[str]:
    """Return the registers of an operand, one or several in braces."""
    return re.findall(r"[^\s,{}]+", operand)


def join(instruction: Instruction) -> Operation:
    """Look up what ``mov`` from several registers to one computes."""
    whole = TYPES[instruction.opcode[1]]
    count = len(names_in(instruction.operands[1]))
    return Operation(lambda *parts: _joined(parts, whole), (UNSIGNED[whole.itemsize // count],) * count)


def split(value: Value, count: int) -> list[Value]:
    """Return the parts of a number, those of the lowest bits first."""
    size = value.dtype.itemsize // count
    return [(value >> value.dtype.type(8 * size * number)).astype(UNSIGNED[size]) for number in range(count)]
