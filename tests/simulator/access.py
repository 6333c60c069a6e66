"""Instructions that reach beyond a thread's registers: memory, shuffles within a warp, barriers."""

import operator
import re
from collections.abc import Iterator
from typing import TYPE_CHECKING

import numpy as np

from . import SimulationError
from .arithmetic import Function
from .conversions import names_in
from .ptx import Instruction, Program
from .races import Access
from .registers import TYPES, UNSIGNED, Mask, Read, Step, Value, reader, size_of, write

if TYPE_CHECKING:
    from .machine import Machine

_WARP = 32
_SPACES = ("global", "shared")


def memory_access(instruction: Instruction, program: Program) -> Step:
    """Translate ``ld`` and ``st``, of one number or of a vector of them."""
    name, space, *vector, kind = instruction.opcode
    loads = name == "ld"
    data, place = instruction.operands if loads else instruction.operands[::-1]
    names, dtype = names_in(data), TYPES.get(kind)
    if space not in _SPACES or vector not in ([], [f"v{len(names)}"]) or dtype is None or dtype.kind == "f":
        raise instruction.unknown()
    registers, addresses = _Vector(names, dtype, program), _addresses(place, program)

    def access(machine: "Machine", mask: Mask) -> None:
        at = _for_each(addresses(machine.registers), machine.threads)
        _move(machine, instruction, space, at, registers, mask)

    return access


def matrix_access(instruction: Instruction, program: Program) -> Step:
    """Translate ``ldmatrix`` and ``stmatrix`` of 8 x 8 numbers of 2 bytes: two neighbours in each thread of a warp.

    The threads give the addresses of the rows, 8 of them those of one matrix.
    """
    loads = instruction.opcode[0] == "ldmatrix"
    data, place = instruction.operands if loads else instruction.operands[::-1]
    names, addresses = names_in(data), _addresses(place, program)
    if instruction.opcode[1:] != ("sync", "aligned", "m8n8", f"x{len(names)}", "shared", "b16"):
        raise instruction.unknown()
    matrices = [_Vector([name], TYPES["b32"], program) for name in names]

    def access(machine: "Machine", mask: Mask) -> None:
        rows = _for_each(addresses(machine.registers), machine.threads)
        lane = machine.threads % _WARP
        for number, matrix in enumerate(matrices):
            at = rows[machine.threads - lane + 8 * number + lane // 4] + (4 * (lane % 4)).astype(np.uint64)
            _move(machine, instruction, "shared", at, matrix, mask)

    return access


class _Vector:
    """Registers whose numbers lie beside each other in memory."""

    def __init__(self, names: list[str], dtype: np.dtype, program: Program) -> None:
        self.names, self.dtype, self.raw = names, dtype, UNSIGNED[dtype.itemsize]
        self.reads: list[Read] = [reader(name, self.raw, program) for name in names]
        self.wide = UNSIGNED[size_of(names[0], program)]
        self.size = dtype.itemsize * len(names)


def _move(
    machine: "Machine", instruction: Instruction, space: str, at: np.ndarray, vector: _Vector, mask: Mask
) -> None:
    """Load or store a vector in each thread of a mask."""
    if instruction.opcode[0] in ("st", "stmatrix"):
        values = [_for_each(read(machine.registers), machine.threads) for read in vector.reads]
        for numbers, threads, places in _locate(machine, instruction, space, at, vector, mask):
            for column, value in enumerate(values):
                numbers[places, column] = value[threads]
        return
    found = np.zeros((len(vector.names), len(machine.threads)), vector.raw)
    for numbers, threads, places in _locate(machine, instruction, space, at, vector, mask):
        found[:, threads] = numbers[places].T
    for name, value in zip(vector.names, found, strict=True):
        write(machine.registers, name, value.view(vector.dtype).astype(vector.wide), mask)


def _locate(
    machine: "Machine", instruction: Instruction, space: str, at: np.ndarray, vector: _Vector, mask: Mask
) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """Yield the pieces of memory as numbers, the threads that access each, and the places where they do."""
    writes = instruction.opcode[0] in ("st", "stmatrix")
    threads = machine.threads if mask is None else np.flatnonzero(mask)
    at = at if mask is None else at[threads]
    if np.bitwise_or.reduce(at) % vector.size:
        raise SimulationError(f"an address that is no multiple of {vector.size}")
    for piece, chosen, offsets in machine.locate(space, at, vector.size, threads):
        accessing = threads if chosen is None else threads[chosen]
        launched = machine.first_thread + accessing
        piece.accesses.noted.append(Access(instruction, writes, offsets, vector.size, launched, machine.barriers))
        yield piece.numbers(vector.raw.itemsize, len(vector.names)), accessing, offsets // vector.size


def _addresses(place: str, program: Program) -> Read:
    register, offset = re.fullmatch(r"\[\s*([%\w]+)\s*(?:\+\s*(-?\d+)\s*)?\]", place).groups()
    read, dtype = reader(register, UNSIGNED[size_of(register, program)], program), UNSIGNED[8]
    distance = np.uint64(int(offset or 0) % (1 << 64))
    return lambda registers: read(registers).astype(dtype) + distance


def _for_each(value: Value, threads: np.ndarray) -> np.ndarray:
    """Return a number for each thread, where there is one for all."""
    return np.full(len(threads), value) if value.ndim == 0 else value


# The lane that each lane reads, in the whole warp.
_LANES: dict[str, Function] = {
    "bfly": operator.xor,
    "up": lambda lane, by: np.where(lane >= by, lane - by, lane),
    "idx": lambda lane, number: number % _WARP,
}


def shuffle(instruction: Instruction, program: Program) -> Step:
    """Translate ``shfl.sync``: each thread reads the register of another one of its warp."""
    name, source, number, bounds, members = instruction.operands
    how = instruction.opcode[2]
    if how not in _LANES or bounds != ("0" if how == "up" else "31") or int(members) != -1 or "|" in name:
        raise instruction.unknown()
    other = _LANES[how]
    read, by = reader(source, TYPES["b32"], program), reader(number, TYPES["s32"], program)

    def exchange(machine: "Machine", mask: Mask) -> None:
        lane = machine.threads % _WARP
        value = _for_each(read(machine.registers), machine.threads)
        write(machine.registers, name, value[machine.threads - lane + other(lane, by(machine.registers))], mask)

    return exchange


def barrier(instruction: Instruction, program: Program) -> Step:
    """Translate ``bar.sync``, which all threads of a program reach or none."""
    if instruction.opcode != ("bar", "sync") or instruction.operands != ("0",):
        raise instruction.unknown()

    def meet(machine: "Machine", mask: Mask) -> None:
        reached = np.ones(len(machine.programs), bool)
        if mask is not None:
            by_program = mask.reshape(-1, program.threads)
            reached = by_program.all(1)
            if (reached != by_program.any(1)).any():
                raise SimulationError("a barrier that some threads of a program reach and others do not")
        machine.barriers = machine.barriers.copy()
        machine.barriers[machine.programs] += reached

    return meet
