"""Read compiled kernels: their loops, instructions, registers and spills."""

import re
import subprocess
import tempfile
from dataclasses import dataclass
from functools import cache

from triton import knobs
from triton.compiler import CompiledKernel

# Constants that say how often the loops within the loop over tiles run.
_TRIPS = {
    "convolve": ("K",),
    "conv_backward_activation": ("K",),
    "conv_backward_weight": ("K",),
    "merge_backward_half": ("WINDOW_ROWS", "ROUTES"),
    "normalise_half": ("ROUTES",),
}


@dataclass
class Loop:
    """A loop of a compiled kernel: what is in no loop within, and these in their order."""

    begin: int
    end: int
    instructions: list[str]
    inner: list["Loop"]

    @property
    def exponentials(self) -> int:
        """How many of the instructions are exponentials."""
        return sum("MUFU.EX2" in instruction for instruction in self.instructions)


def instructions_a_pair(kernel: CompiledKernel, constants: dict[str, int]) -> float:
    """Count the instructions of a scan's loop over tiles, for each pair of a thread.

    Where N is more than 1, it has a loop over n, each time with an exponential for each pair; the compiler may have
    unrolled it. Where a chunk has several tiles, a backward pass has a loop like it before that, over all but one.
    """
    (tiles,) = loops(kernel)
    if constants["ROUTES"] > 1 and constants.get("SPLIT") is False:
        (tiles,) = tiles.inner
    pairs = constants["TILE"] * constants["VECTOR"]
    chunk = constants.get("CHUNK", 0) // constants["TILE"]

    def all_n(loop: Loop) -> float:
        return len(loop.instructions) * constants["N"] * pairs / loop.exponentials

    count = float(len(tiles.instructions))
    for loop in tiles.inner:
        if loop.inner:
            count += (len(loop.instructions) + all_n(loop.inner[0])) * (chunk - 1) / chunk
        elif loop.exponentials:
            count += all_n(loop)
        else:  # copies the state before a chunk
            count += len(loop.instructions) * constants["N"] / chunk
    return round(count / pairs, 1)


def instructions_an_element(name: str, kernel: CompiledKernel, constants: dict[str, int]) -> float:
    """Count the instructions of the loop over tiles of a fused op, for each number of a thread's tile."""
    (tiles,) = loops(kernel)
    trips = [constants[trip] for trip in _TRIPS.get(name.partition(",")[0], ()) if constants.get(trip)]
    # A loop may have been unrolled; those that are left come in their order.
    count = len(tiles.instructions) + sum(
        len(loop.instructions) * trip for loop, trip in zip(tiles.inner, trips, strict=False)
    )
    a_thread = constants["ROWS"] * constants["COLUMNS"] * constants.get("WIDTH", 1) / (32 * constants["num_warps"])
    return round(count / a_thread, 1)


@cache
def loops(kernel: CompiledKernel) -> list[Loop]:
    """Return the outermost loops of a kernel: from a label to the last branch back to it."""
    labels: dict[str, int] = {}
    ends: dict[int, int] = {}
    instructions: list[str] = []
    for line in _run(kernel, knobs.nvidia.nvdisasm.path, "-c").splitlines():
        if label := re.match(r"\s*(\.L_x_\d+):", line):
            labels[label[1]] = len(instructions)
        elif instruction := re.match(r"\s*/\*[0-9a-f]+\*/\s+((@!?U?P\w+ +)?[A-Z].*);", line):
            back = re.search(r"\bBRA\b.*`\((\.L_x_\d+)\)", line)
            if back and labels.get(back[1], len(instructions)) < len(instructions):  # the last one goes to itself
                ends[labels[back[1]]] = len(instructions)
            instructions.append(instruction[1])
    found = [Loop(begin, end, instructions[begin : end + 1], []) for begin, end in sorted(ends.items())]
    for loop in reversed(found):
        inside = [one for one in found if loop.begin < one.begin and one.end <= loop.end]
        loop.inner = [one for one in inside if not any(o.begin < one.begin and one.end <= o.end for o in inside)]
        for one in reversed(loop.inner):
            del loop.instructions[one.begin - loop.begin : one.end + 1 - loop.begin]
    return [loop for loop in found if not any(o.begin < loop.begin and loop.end <= o.end for o in found)]


@cache
def resources(kernel: CompiledKernel) -> tuple[int, int, int]:
    """Return the registers of a thread, its bytes of local memory, where registers are spilled to, and shared bytes."""
    text = _run(kernel, knobs.nvidia.cuobjdump.path, "-res-usage")
    registers, stack, local = (int(re.search(rf"\b{what}:(\d+)", text)[1]) for what in ("REG", "STACK", "LOCAL"))
    return registers, stack + local, kernel.metadata.shared


def _run(kernel: CompiledKernel, *command: str) -> str:
    """Return what a tool prints of a kernel."""
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(kernel.asm["cubin"])
        file.flush()
        return subprocess.run([*command, file.name], check=True, capture_output=True, text=True).stdout
