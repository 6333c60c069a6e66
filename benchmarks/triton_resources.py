"""Registers, spills and shared memory of the Triton kernels as they are launched, for GPUs that need not be here.

    python benchmarks/triton_resources.py           # a Markdown table
    python benchmarks/triton_resources.py --json    # the same as a list of objects

Runs the backend on CPU tensors with a driver that compiles what would be launched, and launches nothing.
"""

import argparse
import json
import re
import subprocess
import tempfile
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from functools import partial
from itertools import product

import torch
from triton import JITFunction, knobs
from triton.backends.compiler import GPUTarget
from triton.compiler import CompiledKernel
from triton.runtime import driver

from mmmsv.kernels.backends.triton import kernels as triton_kernels
from mmmsv.kernels.backends.triton import scan as triton_scan
from mmmsv.kernels.routes import ROUTES
from mmmsv.kernels.scan_arguments import Scan1d, Scan2d

CAPABILITIES = (80, 90)
CARRIED = tuple(ROUTES.index(route) for route in ("row_rev", "col", "col_rev"))
LENGTH = 4096  # long enough for several spans, so that all kernels run


@dataclass(frozen=True)
class Case:
    """A scan with a state of N numbers; without a rank R its step is dense."""

    dtype: torch.dtype
    N: int
    R: int | None
    D: int


# The model's smallest and largest channels and ranks, with its N = 1 and with Mamba's 16; one warp and four a program.
CASES = (
    Case(torch.float32, 1, 6, 96),
    Case(torch.float32, 1, 48, 1536),
    Case(torch.float32, 16, 6, 96),
    Case(torch.float32, 16, None, 128),
    Case(torch.bfloat16, 1, 6, 96),
    Case(torch.bfloat16, 1, 48, 1536),
    Case(torch.bfloat16, 16, 6, 96),
    Case(torch.bfloat16, 16, None, 128),
    Case(torch.float16, 1, 6, 96),
    Case(torch.float16, 1, None, 128),
    Case(torch.float16, 16, 48, 1536),
)


@dataclass(frozen=True)
class Usage:
    """What a thread, or with shared memory a program, of a compiled kernel takes."""

    kernel: str
    capability: int
    dtype: str
    N: int
    R: int | None
    BLOCK_D: int
    warps: int
    registers: int
    spilled_bytes: int
    shared_bytes: int


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


def usages(case: Case, capability: int) -> Iterator[Usage]:
    """Compile the kernels of a forward and a backward pass, and yield what each takes."""
    driver.set_active(CompilingDriver(capability))
    compiled: dict[str, tuple[CompiledKernel, int]] = {}

    def compile_only(kernel: JITFunction, *args: object, grid: tuple[int], warmup: bool, **kwargs: object) -> None:
        name = kernel.__name__ + (" reversed" if kwargs.get("REVERSE") else "")
        compiled[name] = JITFunction.run(kernel, *args, grid=grid, warmup=True, **kwargs), kwargs["BLOCK_D"]

    kernels = [getattr(triton_kernels, name) for name in ("summarise", "carry_over", "scan_forward", "scan_backward")]
    for kernel in kernels:
        kernel.run = partial(compile_only, kernel)
    try:
        _run(case)
    finally:
        for kernel in kernels:
            del kernel.run
    for name, (kernel, block) in compiled.items():
        registers, spilled = _resources(kernel)
        dtype = str(case.dtype).removeprefix("torch.")
        warps, shared = kernel.metadata.num_warps, kernel.metadata.shared
        yield Usage(name, capability, dtype, case.N, case.R, block, warps, registers, spilled, shared)


def _run(case: Case) -> None:
    tokens, D, N, R = (1, 16, LENGTH // 16), case.D, case.N, case.R
    empty = partial(torch.empty, dtype=case.dtype)
    A = torch.empty(D, N)
    if R is None:
        u, B = empty(1, LENGTH, D).transpose(1, 2), empty(1, 1, N, LENGTH)
        scan = Scan1d(u, u, A, B, B, A[:, 0], A[:, 0], True)
        _, states = triton_scan.BACKEND.selective_scan(scan)
        triton_scan.BACKEND.selective_scan_backward(scan, u, states)
    else:
        x, B, bias = empty(*tokens, D), empty(*tokens, 1, N), torch.empty(1, D)
        weights = (torch.empty(1, D, R), bias, A[None], bias)
        scan = Scan2d(x, empty(*tokens, 1, R), B, B, *weights, CARRIED, carry=True, merge=True)
        _, states = triton_scan.BACKEND.scan2d(scan)
        triton_scan.BACKEND.scan2d_backward(scan, x, states)


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
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", action="store_true", help="print a list of objects")
    arguments = parser.parse_args()
    rows = [usage for capability, case in product(CAPABILITIES, CASES) for usage in usages(case, capability)]
    if arguments.json:
        print(json.dumps([asdict(row) for row in rows]))
        return
    print("| kernel | sm | dtype | N | step | channels | warps | registers | spilled bytes | shared bytes |")
    print("|---|---|---|---|---|---|---|---|---|---|")
    for row in rows:
        step = "dense" if row.R is None else f"R = {row.R}"
        cells = (f"`{row.kernel}`", row.capability, row.dtype, row.N, step, row.BLOCK_D, row.warps)
        print("|", *(f"{cell} |" for cell in (*cells, row.registers, row.spilled_bytes, row.shared_bytes)))


if __name__ == "__main__":
    main()
