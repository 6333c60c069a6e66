"""Print what the Triton kernels compile to: instructions a pair, registers, spills. No GPU is needed.

    python -m benchmarks.triton_resources           # a Markdown table
    python -m benchmarks.triton_resources --json    # the same as a list of objects

Runs the backend on CPU tensors with a driver that compiles what would be launched, and launches nothing. A pair is one
channel of one token on one route. Instructions are those of the loop over the tokens, by the number of pairs that each
thread computes in it.
"""

import argparse
import contextlib
import json
import re
import subprocess
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import partial
from itertools import product
from typing import NamedTuple
from unittest.mock import patch

import torch
from triton import JITFunction, knobs
from triton.backends.compiler import GPUTarget
from triton.compiler import CompiledKernel
from triton.runtime import driver

from mmmsv.analysis.speed.markdown import table
from mmmsv.kernels import BACKENDS
from mmmsv.kernels import scan as public
from mmmsv.kernels.arguments import choose_chunk
from mmmsv.kernels.backends.triton import scan, scan_backward, scan_forward, spans

from .baselines import list_implementations
from .cases import Case, MapCase, SequenceCase
from .comparison import Call

CAPABILITIES = (80, 90)
CPU, CUDA = torch.device("cpu"), torch.device("cuda")
BFLOAT16 = torch.bfloat16
# The kinds of route of the models, at the widths of two of their stages: 2 and 4 channels a thread in a forward pass.
ROW = partial(MapCase, 1, 8, 8)
HALF = partial(MapCase, 1, 8, 8, routes=("row_rev", "col", "col_rev"), carry=True, merge=False)


class Compiled(NamedTuple):
    """A case, and whether its routes are cut into spans."""

    case: Case
    cut: bool = False


CASES = (
    *(Compiled(shape(channels, 6, 1, dtype=BFLOAT16)) for shape in (ROW, HALF) for channels in (192, 384)),
    Compiled(ROW(200, 6, 1, dtype=BFLOAT16)),
    Compiled(HALF(192, 6, 1, dtype=BFLOAT16), cut=True),
    Compiled(ROW(192, 6, 16, dtype=BFLOAT16)),
    Compiled(HALF(192, 6, 1)),
    Compiled(HALF(192, 6, 16), cut=True),
    Compiled(HALF(192, 6, 1, dtype=torch.float64)),
    Compiled(SequenceCase(1, 128, 64, 16, True, torch.float16)),
)
COLUMNS = (
    "kernel",
    "capability",
    "dtype",
    "N",
    "routes",
    "channels a thread",
    "instructions a pair",
    "registers",
    "spilled bytes",
    "shared bytes",
)


class CompilingDriver:
    """Stands in for a GPU: Triton asks it what to compile for."""

    def __init__(self, capability: int) -> None:
        self.capability = capability

    def get_current_device(self) -> int:
        return self.capability  # Triton keeps what it has compiled by device

    def get_current_stream(self, device: int) -> int:
        return 0

    def get_current_target(self) -> GPUTarget:
        return GPUTarget("cuda", self.capability, 32)


def usages(compiled: Compiled, capability: int) -> Iterator[tuple[object, ...]]:
    """Compile the kernels of a forward and a backward pass; yield the ``COLUMNS`` of each."""
    case, cut = compiled
    driver.set_active(CompilingDriver(capability))
    launched: dict[str, tuple[CompiledKernel, dict[str, int]]] = {}

    def compile_only(kernel: JITFunction, *args: object, grid: tuple[int], warmup: bool, **kwargs: int) -> None:
        name = kernel.__name__ + (" backward" if kwargs.get("BACKWARD") else "")
        launched[name] = JITFunction.run(kernel, *args, grid=grid, warmup=True, **kwargs), kwargs

    runnable = replace(BACKENDS["triton"], why_not=lambda device: None)
    kernels = (scan_forward.scan_forward, scan_backward.scan_backward, spans.summarise, spans.carry_over)
    with contextlib.ExitStack() as stack:
        for kernel in kernels:
            stack.enter_context(patch.object(kernel, "run", partial(compile_only, kernel), create=True))
        stack.enter_context(patch.dict(BACKENDS, triton=runnable))
        # What it does on a GPU, on a map that is small enough to be made here.
        stack.enter_context(patch.object(public, "choose_chunk", lambda device, state: choose_chunk(CUDA, state)))
        stack.enter_context(patch.object(scan, "_warps_wanted", lambda device: 1 << 20 if cut else 0))
        triton = next(one for one in list_implementations(CPU) if one.name == "triton")
        Call(case, CPU).results(triton)
    routes = "1-D" if isinstance(case, SequenceCase) else "+".join(case.routes) + (", cut" if cut else "")
    for name, (kernel, constants) in launched.items():
        of_case = (name, capability, str(case.dtype).removeprefix("torch."), case.state, routes)
        with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
            file.write(kernel.asm["cubin"])
            file.flush()
            count = "" if name.startswith("carry_over") else instructions_a_pair(file.name, constants)
            resources = _resources(file.name)
        yield *of_case, constants.get("VECTOR", 1), count, *resources, kernel.metadata.shared


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


def instructions_a_pair(cubin: str, constants: dict[str, int]) -> float:
    """Count the instructions of the loop over tiles, for each pair of a thread.

    Where N is more than 1, it has a loop over n, each time with an exponential for each pair; the compiler may have
    unrolled it. Where a chunk has several tiles, a backward pass has a loop like it before that, over all but one.
    """
    (tiles,) = loops(cubin)
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


def loops(cubin: str) -> list[Loop]:
    """Return the outermost loops of a kernel: from a label to the last branch back to it."""
    command = [knobs.nvidia.nvdisasm.path, "-c", cubin]
    labels: dict[str, int] = {}
    ends: dict[int, int] = {}
    instructions: list[str] = []
    for line in subprocess.run(command, check=True, capture_output=True, text=True).stdout.splitlines():
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


def _resources(cubin: str) -> tuple[int, int]:
    """Return the registers of a thread, and its bytes of local memory: where registers are spilled to."""
    command = [knobs.nvidia.cuobjdump.path, "-res-usage", cubin]
    text = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    registers, stack, local = (int(re.search(rf"\b{what}:(\d+)", text)[1]) for what in ("REG", "STACK", "LOCAL"))
    return registers, stack + local


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.triton_resources", description=__doc__.splitlines()[0])
    parser.add_argument("--json", action="store_true", help="print a list of objects")
    arguments = parser.parse_args()
    rows = [usage for capability, case in product(CAPABILITIES, CASES) for usage in usages(case, capability)]
    if arguments.json:
        print(json.dumps([dict(zip(COLUMNS, row, strict=True)) for row in rows]))
    else:
        print(table(COLUMNS, ((f"`{kernel}`", *usage) for kernel, *usage in rows)))


if __name__ == "__main__":
    main()
