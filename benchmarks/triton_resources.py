"""Print registers, spills and shared memory of the Triton kernels as they are launched, for GPUs that need not be here.

    python -m benchmarks.triton_resources           # a Markdown table
    python -m benchmarks.triton_resources --json    # the same as a list of objects

Runs the backend on CPU tensors with a driver that compiles what would be launched, and launches nothing.
"""

import argparse
import json
import re
import subprocess
import tempfile
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from itertools import product
from unittest.mock import patch

import torch
from triton import JITFunction, knobs
from triton.backends.compiler import GPUTarget
from triton.compiler import CompiledKernel
from triton.runtime import driver

from mmmsv.analysis.speed.markdown import table
from mmmsv.kernels import BACKENDS
from mmmsv.kernels.backends.triton import kernels as triton_kernels

from .baselines import list_implementations
from .cases import Case, MapCase, SequenceCase
from .comparison import Call

CAPABILITIES = (80, 90)
CPU = torch.device("cpu")
LENGTH = 4096  # long enough for several spans, so that all kernels run
MAP = partial(MapCase, 1, 16, LENGTH // 16, routes=("row_rev", "col", "col_rev"), carry=True)
# The model's smallest and largest channels and ranks, with its N = 1 and with Mamba's 16, and dense steps; one warp and
# four a program.
CASES: tuple[Case, ...] = (
    *(
        case
        for dtype in (torch.float32, torch.bfloat16)
        for case in (
            MAP(96, 6, 1, dtype=dtype),
            MAP(1536, 48, 1, dtype=dtype),
            MAP(96, 6, 16, dtype=dtype),
            SequenceCase(1, 128, LENGTH, 16, True, dtype),
        )
    ),
    MAP(96, 6, 1, dtype=torch.float16),
    SequenceCase(1, 128, LENGTH, 1, True, torch.float16),
    MAP(1536, 48, 16, dtype=torch.float16),
)
COLUMNS = (
    "kernel",
    "capability",
    "dtype",
    "N",
    "step",
    "channels",
    "warps",
    "registers",
    "spilled_bytes",
    "shared_bytes",
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


def usages(case: Case, capability: int) -> Iterator[tuple[object, ...]]:
    """Compile the kernels of a forward and a backward pass; yield the ``COLUMNS`` of each."""
    driver.set_active(CompilingDriver(capability))
    compiled: dict[str, tuple[CompiledKernel, int]] = {}

    def compile_only(kernel: JITFunction, *args: object, grid: tuple[int], warmup: bool, **kwargs: object) -> None:
        name = kernel.__name__ + (" reversed" if kwargs.get("REVERSE") else "")
        compiled[name] = JITFunction.run(kernel, *args, grid=grid, warmup=True, **kwargs), kwargs["BLOCK_D"]

    runnable = replace(BACKENDS["triton"], why_not=lambda device: None)
    kernels = [getattr(triton_kernels, name) for name in ("summarise", "carry_over", "scan_forward", "scan_backward")]
    for kernel in kernels:
        kernel.run = partial(compile_only, kernel)
    try:
        with patch.dict(BACKENDS, triton=runnable):
            triton = next(one for one in list_implementations(CPU) if one.name == "triton")
            Call(case, CPU).results(triton)
    finally:
        for kernel in kernels:
            del kernel.run
    step = f"R = {case.rank}" if isinstance(case, MapCase) else "dense"
    for name, (kernel, block) in compiled.items():
        of_case = (name, capability, str(case.dtype).removeprefix("torch."), case.state, step, block)
        yield *of_case, kernel.metadata.num_warps, *_resources(kernel), kernel.metadata.shared


def _resources(kernel: CompiledKernel) -> tuple[int, int]:
    """Return the registers of a thread, and its bytes of local memory: where registers are spilled to."""
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(kernel.asm["cubin"])
        file.flush()
        command = [knobs.nvidia.cuobjdump.path, "-res-usage", file.name]
        text = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    registers, stack, local = (int(re.search(rf"\b{what}:(\d+)", text).group(1)) for what in ("REG", "STACK", "LOCAL"))
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
