"""Print what the Triton kernels compile to: instructions a pair, registers, spills. No GPU is needed.

    python -m benchmarks.triton_resources           # a Markdown table
    python -m benchmarks.triton_resources --json    # the same as a list of objects

Runs the backend on CPU tensors with a driver that compiles what would be launched, and launches nothing. A pair is one
channel of one token on one route; of the other ops it is one channel of one token of the map that a kernel goes over.
Instructions are those of the loop over the tokens, by the number of pairs that each thread computes in it.
"""

import argparse
import contextlib
import json
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from unittest.mock import patch

import torch
from torch import Tensor
from triton import JITFunction
from triton.backends.compiler import GPUTarget
from triton.compiler import CompiledKernel
from triton.runtime import driver

from mmmsv.analysis.speed.markdown import table
from mmmsv.kernels import BACKENDS, depthwise_conv, gate, layer_norm, merge_scales, use_backend
from mmmsv.kernels import scan as public
from mmmsv.kernels.arguments import choose_chunk
from mmmsv.kernels.backends.triton import scan

from .baselines import list_implementations
from .cases import Case, MapCase, SequenceCase
from .comparison import Call
from .sass import instructions_a_pair, instructions_an_element, resources

CAPABILITIES = (80, 90)
CPU, CUDA = torch.device("cpu"), torch.device("cuda")
BFLOAT16 = torch.bfloat16
# The kinds of route of the models, at the widths of two of their stages: 2 and 4 channels a thread in a forward pass.
ROW = partial(MapCase, 1, 8, 8)
HALF = partial(MapCase, 1, 8, 8, routes=("row_rev", "col", "col_rev"), carry=True, merge=False)
CASES: tuple[Case, ...] = (
    *(shape(channels, 6, 1, dtype=BFLOAT16) for shape in (ROW, HALF) for channels in (192, 384)),
    ROW(200, 6, 1, dtype=BFLOAT16),
    ROW(192, 6, 16, dtype=BFLOAT16),
    HALF(192, 6, 1),
    HALF(192, 6, 1, dtype=torch.float64),
    SequenceCase(1, 128, 64, 16, True, torch.float16),
)
# Whose routes are cut into spans.
CUT = (HALF(192, 6, 1, dtype=BFLOAT16), HALF(192, 6, 16))
# Widths of the first and the last stage.
CHANNELS = (96, 192, 384, 768, 1536)
COLUMNS = (
    "kernel",
    "capability",
    "dtype",
    "N",
    "case",
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


def usages(capability: int) -> Iterator[tuple[object, ...]]:
    """Compile the kernels of forward and backward passes; yield the ``COLUMNS`` of each."""
    driver.set_active(CompilingDriver(capability))
    triton = next(one for one in list_implementations(CPU) if one.name == "triton")
    for case, wanted in (*((case, 0) for case in CASES), *((case, 1 << 20) for case in CUT)):
        # As on a GPU, on a map that is small enough to be made here.
        with (
            patch.object(public, "choose_chunk", lambda device, state: choose_chunk(CUDA, state)),
            patch.object(scan, "_warps_wanted", lambda device, wanted=wanted: wanted),
            compiling() as launched,
        ):
            Call(case, CPU).results(triton)
        routes = "1-D" if isinstance(case, SequenceCase) else "+".join(case.routes) + (", cut" if wanted else "")
        for name, (kernel, constants) in launched.items():
            count = "" if name.startswith("carry_over") else instructions_a_pair(kernel, constants)
            yield (
                name,
                capability,
                _name(case.dtype),
                case.state,
                routes,
                constants.get("VECTOR", ""),
                count,
                *resources(kernel),
            )
    for channels in CHANNELS:
        with compiling() as launched:
            _run_fused(channels)
        for name, (kernel, constants) in launched.items():
            case = f"{channels} channels"
            count = instructions_an_element(name, kernel, constants)
            yield name, capability, _name(BFLOAT16), "", case, constants["VECTOR"], count, *resources(kernel)


def _run_fused(channels: int) -> None:
    def leaf(*shape: int, dtype: torch.dtype = BFLOAT16) -> Tensor:
        return torch.zeros(shape, dtype=dtype, requires_grad=True)

    full, half = leaf(1, 4, 4, channels), leaf(1, 3, 2, 2, channels)
    weight, bias = leaf(channels, dtype=torch.float32), leaf(channels, dtype=torch.float32)
    small, large = (leaf(channels, 1, side, side, dtype=torch.float32) for side in (3, 7))
    with use_backend("triton"):
        depthwise_conv(full, small, bias, activation="gelu", residual=True).sum().backward()
        depthwise_conv(full, large, bias, stride=2, activation="silu").sum().backward()
        gate(full, leaf(1, 4, 4, channels), leaf(1, channels, dtype=torch.float32)).sum().backward()
        layer_norm(full, weight, bias, 1e-5).sum().backward()
        for maps, norm_first in ((half[:, :1], False), (half, True)):
            y, mean = merge_scales(full, maps, weight, bias, 1e-5, norm_first)
            (y.sum() + mean.sum()).backward()


@contextlib.contextmanager
def compiling() -> Iterator[dict[str, tuple[CompiledKernel, dict[str, int]]]]:
    """Let the backend run on a CPU, and collect the kernels that it would launch, with their constants, by name."""
    launched: dict[str, tuple[CompiledKernel, dict[str, int]]] = {}
    run = JITFunction.run

    def compile_only(kernel: JITFunction, *args: object, grid: tuple[int], warmup: bool, **kwargs: int) -> None:
        name = kernel.__name__ + (" backward" if kwargs.get("BACKWARD") else "")
        name += {True: ", norm first", False: ", norm last"}.get(kwargs.get("NORM_FIRST"), "")
        name += f", {kwargs['K']} x {kwargs['K']}, {kwargs['ACTIVATION']}" if "K" in kwargs else ""
        launched[name] = run(kernel, *args, grid=grid, warmup=True, **kwargs), kwargs

    runnable = replace(BACKENDS["triton"], why_not=lambda device: None)
    with patch.object(JITFunction, "run", compile_only), patch.dict(BACKENDS, triton=runnable):
        yield launched


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.triton_resources", description=__doc__.splitlines()[0])
    parser.add_argument("--json", action="store_true", help="print a list of objects")
    arguments = parser.parse_args()
    rows = [usage for capability in CAPABILITIES for usage in usages(capability)]
    if arguments.json:
        print(json.dumps([dict(zip(COLUMNS, row, strict=True)) for row in rows]))
    else:
        print(table(COLUMNS, ((f"`{kernel}`", *usage) for kernel, *usage in rows)))


if __name__ == "__main__":
    main()
