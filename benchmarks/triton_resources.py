"""Print what the Triton kernels compile to: instructions a pair, registers, spills. No GPU is needed.

    python -m benchmarks.triton_resources           # a Markdown table
    python -m benchmarks.triton_resources --json    # the same as a list of objects

Runs the backend on CPU tensors with a driver that compiles what would be launched, and launches nothing. A pair is one
channel of one token on one route; of the other ops it is one channel of one token of the map that a kernel goes over.
Instructions are those of the loop over the tokens, by the number of pairs that each thread computes in it.
"""

import argparse
import json
from collections.abc import Callable, Iterator
from functools import partial
from unittest.mock import patch

import torch
from torch import Tensor

from mmmsv.analysis.speed.markdown import table
from mmmsv.kernels import (
    branch_off,
    depthwise_conv,
    gate,
    layer_norm,
    merge_scales,
    read_twice,
    selective_scan,
    use_backend,
)
from mmmsv.kernels import scan as public
from mmmsv.kernels.arguments import choose_chunk
from mmmsv.kernels.backends.triton import plan

from .baselines import list_implementations
from .cases import Case, MapCase, SequenceCase
from .comparison import Call
from .launches import Launch, recording

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
# The narrowest and the widest map of a block.
CHANNELS = (192, 1536)
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


def usages(capability: int) -> Iterator[tuple[object, ...]]:
    """Compile the kernels of forward and backward passes; yield the ``COLUMNS`` of each."""
    triton = next(one for one in list_implementations(CPU) if one.name == "triton")
    launches: dict[str, Launch] = {}
    with recording(capability, lambda launch: launches.update({launch.name: launch})):
        for case, wanted in (*((case, 0) for case in CASES), *((case, 1 << 20) for case in CUT)):
            # As on a GPU, on a map that is small enough to be made here.
            with (
                patch.object(public, "choose_chunk", lambda device, state: choose_chunk(CUDA, state)),
                patch.object(plan, "warps_wanted", lambda device, wanted=wanted: wanted),
            ):
                Call(case, CPU).results(triton)
            routes = "1-D" if isinstance(case, SequenceCase) else "+".join(case.routes) + (", cut" if wanted else "")
            for launch in launches.values():
                yield _usage(launch, capability, case.dtype, case.state, routes)
            launches.clear()
        for state in (1, 16):
            _run_gated_sequence(state)
            for launch in launches.values():
                yield _usage(launch, capability, BFLOAT16, state, "1-D from a state to a state")
            launches.clear()
        for channels in CHANNELS:
            _run_fused(channels)
            if channels == CHANNELS[0]:
                _run_convolutions(channels)
            for launch in launches.values():
                yield _usage(launch, capability, BFLOAT16, "", f"{channels} channels")
            launches.clear()


def _usage(launch: Launch, capability: int, dtype: torch.dtype, state: object, case: str) -> tuple[object, ...]:
    count = "" if launch.kernel == "carry_over" else launch.instructions_a_pair
    vector = launch.arguments.get("VECTOR", "")
    return (
        launch.name,
        capability,
        str(dtype).removeprefix("torch."),
        state,
        case,
        vector,
        count,
        *launch.resources,
    )


def _leaf(*shape: int, dtype: torch.dtype = BFLOAT16) -> Tensor:
    return torch.zeros(shape, dtype=dtype, requires_grad=True)


def _run_gated_sequence(state: int) -> None:
    u, delta, z = (_leaf(1, 64, 192).transpose(1, 2) for _ in range(3))
    B, C = (_leaf(1, 64, state).transpose(1, 2) for _ in range(2))
    A, D, h0 = (_leaf(*shape, dtype=torch.float32) for shape in ((192, state), (192,), (1, 192, state)))
    with use_backend("triton"), patch.object(public, "choose_chunk", lambda device, n: choose_chunk(CUDA, n)):
        y, last = selective_scan(u, delta, A, B, C, D, z, None, True, return_last_state=True, h0=h0)
        (y.sum() + last.sum()).backward()


def _run_convolutions(channels: int) -> None:
    x, bias = _leaf(1, 4, 4, channels), _leaf(channels, dtype=torch.float32)
    small, large = (_leaf(channels, 1, side, side, dtype=torch.float32) for side in (3, 7))
    with use_backend("triton"):
        depthwise_conv(x, small, bias, activation="gelu", residual=True).sum().backward()
        depthwise_conv(x, large, bias, stride=2, activation="silu").sum().backward()
        _run_with_two_readers(partial(depthwise_conv, weight=small, bias=bias, activation="silu"), x)
        _run_with_two_readers(partial(depthwise_conv, weight=large, bias=bias, stride=2, activation="silu"), x)


def _run_with_two_readers(layer: Callable[[Tensor], Tensor], x: Tensor) -> None:
    """Let kernels add the gradients that others give the result and the argument."""
    x, y = branch_off(layer, x)
    (x.sum() + sum(reader.sum() for reader in read_twice(y))).backward()


def _run_fused(channels: int) -> None:
    full, half = _leaf(1, 4, 4, channels), _leaf(1, 3, 2, 2, channels)
    weight, bias = _leaf(channels, dtype=torch.float32), _leaf(channels, dtype=torch.float32)
    with use_backend("triton"):
        gate(full, _leaf(1, 4, 4, channels), _leaf(1, channels, dtype=torch.float32)).sum().backward()
        layer_norm(full, weight, bias, 1e-5).sum().backward()
        _run_with_two_readers(partial(layer_norm, weight=weight, bias=bias, eps=1e-5), full)
        for maps, norm_first in ((half[:, :1], False), (half, True)):
            y, mean = merge_scales(full, maps, weight, bias, 1e-5, norm_first)
            (y.sum() + mean.sum()).backward()


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.triton_resources", description=__doc__.splitlines()[0])
    parser.add_argument("--json", action="store_true", help="print a list of objects")
    parser.add_argument("--capability", type=int, nargs="+", choices=CAPABILITIES, default=CAPABILITIES)
    arguments = parser.parse_args()
    rows = [usage for capability in arguments.capability for usage in usages(capability)]
    if arguments.json:
        print(json.dumps([dict(zip(COLUMNS, row, strict=True)) for row in rows]))
    else:
        print(table(COLUMNS, ((f"`{kernel}`", *usage) for kernel, *usage in rows)))


if __name__ == "__main__":
    main()
