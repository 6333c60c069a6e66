"""Runs a kernel: all threads of all its programs at once, one instruction after the other.

Threads that take different ways wait for each other where the ways meet. No program waits for another one, so that
several may run as one.
"""

from collections.abc import Iterable, Iterator
from math import prod
from typing import NamedTuple

import numpy as np
import torch

from . import SimulationError
from .access import barrier, matrix_access, memory_access, shuffle
from .arithmetic import operation
from .conversions import conversion, join, names_in, split
from .memory import GlobalMemory, Piece, SharedMemory
from .ptx import Block, Instruction, Program
from .registers import TYPES, UNSIGNED, Mask, Registers, Step, Value, reader, size_of, write

# More do not run faster, and each has registers.
_THREADS_AT_ONCE = 1 << 13


class Launch(NamedTuple):
    """What a kernel is launched with: its grid, its parameters as bits, bytes of shared memory for each program."""

    grid: tuple[int, int, int]
    parameters: dict[str, Value]
    shared: int


class Kernel:
    """A compiled kernel, translated to steps of the simulator block by block, when threads enter it."""

    def __init__(self, ptx: str) -> None:
        self.program = Program.parse(ptx)
        self._steps: dict[int, list[tuple[Instruction, Step]]] = {}

    def steps(self, block: int) -> list[tuple[Instruction, Step]]:
        """Return the instructions of a block, each with what it does."""
        if block not in self._steps:
            instructions = self.program.blocks[block].instructions
            self._steps[block] = [(each, _translate(each, self.program)) for each in instructions]
        return self._steps[block]


def simulate(kernel: Kernel, launch: Launch, tensors: Iterable[torch.Tensor]) -> int:
    """Run all programs of a launch on the memory of some tensors; return how many instructions they were.

    Args:
        kernel: What to run.
        launch: How.
        tensors: What the kernel may access, on the CPU.

    Raises:
        SimulationError: The kernel accesses other memory, threads race, or some pass a barrier and others do not.
        NotImplementedError: The simulator lacks an instruction of the kernel.
    """
    memory, programs = GlobalMemory(tensors), prod(launch.grid)
    barriers = np.zeros(programs, np.int64)
    at_once = max(_THREADS_AT_ONCE // kernel.program.threads, 1)
    steps = 0
    for first in range(0, programs, at_once):
        machine = Machine(kernel, launch, np.arange(first, min(first + at_once, programs)), memory, barriers)
        steps += machine.run()
        barriers = machine.barriers
        _check(kernel, [machine.shared.piece])
    _check(kernel, memory.pieces)
    return steps


def _check(kernel: Kernel, pieces: list[Piece]) -> None:
    for piece in pieces:
        if race := piece.accesses.race(kernel.program.threads):
            raise SimulationError(f"{kernel.program.name}, in {piece.name}: {race}")


class Machine:
    """The threads of some programs of a launch, their registers and what they share.

    Args:
        kernel: What they run.
        launch: How it was launched.
        programs: Their numbers in the launch.
        memory: What they may access.
        barriers: How many each program of the launch has passed.
    """

    def __init__(
        self,
        kernel: Kernel,
        launch: Launch,
        programs: np.ndarray,
        memory: GlobalMemory,
        barriers: np.ndarray,
    ) -> None:
        threads = kernel.program.threads
        self.kernel, self.programs, self.memory = kernel, programs, memory
        self.barriers = barriers
        self.threads = np.arange(len(programs) * threads)
        self.first_thread = programs[0] * threads
        self.shared = SharedMemory(launch.shared, len(programs))
        self._program_of = self.threads // threads
        self.registers: Registers = dict(launch.parameters)
        self.registers.update(self._special(launch.grid))

    def _special(self, grid: tuple[int, int, int]) -> Registers:
        """Return the registers that say where a thread is in its program, and the program in the grid."""
        threads = self.kernel.program.threads
        x, y, _ = grid
        places = (self.programs % x, self.programs // x % y, self.programs // (x * y))
        found = {"%tid.x": (self.threads % threads).astype(np.uint32), "global_smem": np.uint32(0)}
        for axis, place, size in zip("xyz", places, grid, strict=True):
            found[f"%nctaid.{axis}"] = np.uint32(size)
            same = (place == place[0]).all()
            found[f"%ctaid.{axis}"] = np.uint32(place[0]) if same else place.repeat(threads).astype(np.uint32)
        return found

    def locate(
        self, space: str, addresses: np.ndarray, size: int, threads: np.ndarray
    ) -> Iterator[tuple[Piece, np.ndarray | None, np.ndarray]]:
        """Yield the pieces of memory that threads access, which of them (None: all), and the offsets in the piece."""
        if space == "shared":
            yield self.shared.piece, None, self.shared.offsets(addresses, size, self._program_of[threads])
        else:
            yield from self.memory.locate(addresses, size)

    def run(self) -> int:
        """Run the programs to their end; return how many instructions they were."""
        blocks, count = self.kernel.program.blocks, 0
        with np.errstate(all="ignore"):
            # Where to go on, where others are to be met, and the threads that do so; the last one first.
            ways: list[tuple[int, int, Mask]] = [(0, len(blocks) - 1, None)]
            while ways:
                number, meeting, mask = ways.pop()
                while number != meeting:
                    steps = self.kernel.steps(number)
                    self._execute(steps, mask)
                    count += len(steps)
                    block = blocks[number]
                    taken = self._taken(block, mask)
                    if isinstance(taken, bool):
                        number = block.target if taken else block.following
                        continue
                    others = ~taken if mask is None else mask & ~taken
                    ways += [(block.join, meeting, mask), (block.following, block.join, others)]
                    number, meeting, mask = block.target, block.join, taken
        return count

    def _execute(self, steps: list[tuple[Instruction, Step]], mask: Mask) -> None:
        for instruction, step in steps:
            try:
                step(self, mask)
            except SimulationError as error:
                raise SimulationError(f"{self.kernel.program.name}: {error}, at {instruction}") from error

    def _taken(self, block: Block, mask: Mask) -> bool | np.ndarray:
        """Return whether threads take the branch at the end of a block; which of them, where not all do the same."""
        if block.branch is None:
            return False
        taken = self.registers[block.branch.predicate]
        if block.branch.negated:
            taken = ~taken
        if taken.ndim == 0:
            return bool(taken)
        if mask is not None:
            taken = taken & mask
        count = np.count_nonzero(taken)
        if count == 0:
            return False
        return True if count == (taken.size if mask is None else np.count_nonzero(mask)) else taken


_STEPS = {
    "st": memory_access,
    "ldmatrix": matrix_access,
    "stmatrix": matrix_access,
    "shfl": shuffle,
    "bar": barrier,
}


def _translate(instruction: Instruction, program: Program) -> Step:
    """Return what an instruction does to a machine, in the threads of a mask."""
    name = instruction.opcode[0]
    if name in _STEPS:
        step = _STEPS[name](instruction, program)
    elif name == "ld":
        step = (_parameter if instruction.opcode[1] == "param" else memory_access)(instruction, program)
    elif name == "mov" and instruction.operands[0].startswith("{"):
        step = _split(instruction, program)
    else:
        step = _computation(instruction, program)
    return _where_predicate_holds(instruction, step) if instruction.predicate else step


def _parameter(instruction: Instruction, program: Program) -> Step:
    name, parameter = instruction.operands[0], instruction.operands[1].strip("[] ")
    dtype, wide = TYPES[instruction.opcode[2]], UNSIGNED[size_of(name, program)]

    def step(machine: Machine, mask: Mask) -> None:
        write(machine.registers, name, machine.registers[parameter].view(dtype).astype(wide), mask)

    return step


def _split(instruction: Instruction, program: Program) -> Step:
    """Move the parts of one register to several."""
    names = names_in(instruction.operands[0])
    read = reader(instruction.operands[1], TYPES[instruction.opcode[1]], program)

    def step(machine: Machine, mask: Mask) -> None:
        for name, value in zip(names, split(read(machine.registers), len(names)), strict=True):
            write(machine.registers, name, value, mask)

    return step


def _computation(instruction: Instruction, program: Program) -> Step:
    """Write what is computed from other registers."""
    name, *sources = instruction.operands
    if instruction.opcode[0] == "cvt":
        found = conversion(instruction)
    elif sources[0].startswith("{"):
        found, sources = join(instruction), names_in(sources[0])
    else:
        found = operation(instruction)
    if found is None or len(found.types) != len(sources):
        raise instruction.unknown()
    reads = [reader(source, dtype, program) for source, dtype in zip(sources, found.types, strict=True)]
    function = found.function

    def step(machine: Machine, mask: Mask) -> None:
        registers = machine.registers
        write(registers, name, function(*[read(registers) for read in reads]), mask)

    return step


def _where_predicate_holds(instruction: Instruction, step: Step) -> Step:
    predicate, negated = instruction.predicate, instruction.negated

    def guarded(machine: Machine, mask: Mask) -> None:
        holds = machine.registers[predicate]
        if negated:
            holds = ~holds
        if holds.ndim:
            mask = holds if mask is None else holds & mask
            count = np.count_nonzero(mask)
            if count:
                step(machine, None if count == mask.size else mask)
        elif holds:
            step(machine, mask)

    return guarded
