"""What only the Triton backend has: spans, 64-bit offsets, and what its kernels compile to.

Values are compared in this process, by Triton's interpreter where there is no GPU; compiling needs the real Triton, and
so a process in which the interpreter was not asked for.
"""

import dataclasses
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from mmmsv.kernels.backends.triton import scan as triton_scan

from ..simulator import SIMULATED
from .scan_inputs import (
    MAP_NAMES,
    NAMES,
    TOLERANCE,
    MapCase,
    assert_near,
    device_of,
    exact,
    exact_map,
    run,
    run_map,
    run_with_last_state,
    scan_inputs,
)

if reason := triton_scan.why_no_triton():
    pytest.skip(reason, allow_module_level=True)

import triton

from mmmsv.kernels import BACKENDS, scan, selective_scan, use_backend
from mmmsv.kernels.arguments import Scan2d, choose_chunk
from mmmsv.kernels.backends.triton import maps, plan, problem
from mmmsv.kernels.backends.triton import scan_forward as forward_kernel
from mmmsv.kernels.backends.triton.tokens import divisor
from mmmsv.kernels.routes import ROUTES

ROOT = Path(__file__).parents[2]
CARRIED = MapCase(routes=("row_rev", "col", "col_rev"), carry=True, state=2, batch=1, dtype=torch.float32)


def set_spans(monkeypatch, many):
    """Make the device seem large enough for a program to each chunk, or small enough for one program to a sequence."""
    monkeypatch.setattr(plan, "warps_wanted", lambda device: 1 << 20 if many else 1)


@pytest.fixture(autouse=True)
def chunks_of_a_gpu(monkeypatch):
    """Keep states as often as on a GPU, whatever device the tensors are on."""
    monkeypatch.setattr(scan, "choose_chunk", lambda device, state: choose_chunk(torch.device("cuda"), state))


HALF = {"routes": ("row_rev", "col", "col_rev"), "carry": True, "merge": False}


@pytest.mark.slow
@pytest.mark.parametrize(
    "case",
    [
        MapCase(size=(5, 7), state=1, dim=64, rank=6, dtype=torch.float32, **HALF),
        MapCase(size=(5, 7), state=1, dim=40, rank=6, dtype=torch.bfloat16, **HALF),
        MapCase(size=(4, 6), state=1, dim=128, rank=2, dtype=torch.float64, **HALF),
        MapCase(size=(3, 5), state=1, dim=256, rank=12, dtype=torch.float16),
        MapCase(size=(5, 3), state=1, dim=70, rank=5, dtype=torch.float32, routes=ROUTES, sets=4),
        MapCase(size=(9, 4), state=2, dim=6, dtype=torch.float32, **HALF),
        MapCase(size=(9, 9), state=16, dim=6, dtype=torch.float32, routes=("col_rev", "row"), merge=False),
    ],
)
def test_values_and_gradients(case):
    for name, ours, theirs in zip(
        ("y", *MAP_NAMES), run_map("triton", case.inputs(), case.options), exact_map(case, "triton"), strict=True
    ):
        assert_near(ours, theirs, TOLERANCE[case.dtype], name)


def test_autocast_leaves_the_step_as_it_is():
    """Its product of matrices is in float32 where the inputs are."""
    case = MapCase(size=(3, 4), dim=8, rank=5, batch=1, dtype=torch.float32)
    plain = run_map("triton", case.inputs(), case.options)
    with torch.autocast(device_of("triton").type, torch.bfloat16):
        cast = run_map("triton", case.inputs(), case.options)
    for name, ours, theirs in zip(("y", *MAP_NAMES), cast, plain, strict=True):
        assert torch.equal(ours, theirs), name


@pytest.mark.parametrize("number", [1, 2, 3, 7, 16, 56, 1000, 65537, (1 << 31) - 1])
def test_division_by_multiplication(number):
    _, inverse, shift = divisor(number)
    inverse %= 1 << 32
    numbers = {n for k in (0, 1, 2, 5, (1 << 31) // number) for n in (k * number - 1, k * number, k * number + 1)}
    for n in numbers | {(1 << 31) - 1}:
        if 0 <= n < 1 << 31:
            assert (2 * n * inverse >> 32) >> shift == n // number


@pytest.mark.slow
@pytest.mark.parametrize("many", [False, True])
@pytest.mark.parametrize("case", [CARRIED, dataclasses.replace(CARRIED, routes=("row", "col"), sets=2, carry=False)])
def test_one_span_and_many(monkeypatch, many, case):
    set_spans(monkeypatch, many)
    case = dataclasses.replace(case, size=(13, 11), state=1)
    for name, ours, theirs in zip(
        ("y", *MAP_NAMES), run_map("triton", case.inputs(), case.options), exact_map(case, "triton"), strict=True
    ):
        assert_near(ours, theirs, TOLERANCE[case.dtype], name)


@pytest.mark.parametrize("length", [129, 192])
def test_borders_of_chunks(monkeypatch, length):
    """The last span has one token, or a whole chunk."""
    set_spans(monkeypatch, many=True)
    inputs = scan_inputs(batch=1, length=length, dtype=torch.float32)
    for name, ours, theirs in zip(("y", *NAMES), run("triton", inputs), run("reference", exact(inputs)), strict=True):
        assert_near(ours, theirs, TOLERANCE[torch.float32], name)


def check_sequence(dtype, inputs):
    assert BACKENDS["triton"].selective_scan  # otherwise the next backend computes
    expected = run_with_last_state("reference", exact(inputs))
    for name, ours, theirs in zip(("y", "last", *inputs), run_with_last_state("triton", inputs), expected, strict=True):
        assert_near(ours, theirs, TOLERANCE[dtype], name)


@pytest.mark.parametrize("many", [False, True])
@pytest.mark.parametrize(
    ("dim", "state", "groups", "length", "dtype"),
    [(6, 1, 2, 21, torch.float32), (64, 2, 1, 24, torch.float16), (6, 16, 1, 17, torch.float64)],
)
def test_from_state_to_state(monkeypatch, many, dim, state, groups, length, dtype):
    """A gate, and states before the first and after the last token, in one span and in three."""
    set_spans(monkeypatch, many)
    monkeypatch.setattr(scan, "choose_chunk", lambda device, state: 8)
    check_sequence(dtype, scan_inputs(1, dim, length, state, groups, dtype, all_of_them=True))


@pytest.mark.parametrize(("left_out", "state"), [("z", 1), ("h0", 2)])
def test_gate_or_first_state(monkeypatch, left_out, state):
    set_spans(monkeypatch, many=False)
    inputs = scan_inputs(1, 6, 11, state, dtype=torch.float32, all_of_them=True)
    del inputs[left_out]
    check_sequence(torch.float32, inputs)


def test_a_gate_that_lies_apart():
    """As in Mamba, where it is a half of another tensor, and u is a whole one."""
    inputs = {name: each.detach().to(device_of("triton")) for name, each in scan_inputs(all_of_them=True).items()}
    apart = torch.cat((inputs["u"].mT, inputs["z"].mT), -1)[..., 6:].mT
    with use_backend("triton"):
        y, y_apart = selective_scan(**inputs), selective_scan(**{**inputs, "z": apart})
    assert apart.stride() != inputs["u"].stride()
    assert torch.equal(y, y_apart)


@pytest.mark.slow
def test_more_spans_than_are_carried_at_once(monkeypatch):
    set_spans(monkeypatch, many=True)
    monkeypatch.setattr(problem, "_CARRY_ROWS", 8)
    length = 8 * 8 + 1
    inputs = scan_inputs(batch=1, dim=1, length=length, dtype=torch.float32)
    with torch.no_grad():
        inputs["A"].mul_(1e-3)  # a state that lasts as long as the sequence
    for name, ours, theirs in zip(("y", *NAMES), run("triton", inputs), run("reference", exact(inputs)), strict=True):
        assert_near(ours, theirs, TOLERANCE[torch.float32], name)


def test_long_offsets(monkeypatch):
    """Offsets of 64 bits, for which real inputs would have to have gigabytes, give the same."""
    expected = run_map("triton", CARRIED.inputs(), CARRIED.options)
    monkeypatch.setattr(plan, "_extent", lambda tensor: 1 << 31)
    for ours, theirs in zip(run_map("triton", CARRIED.inputs(), CARRIED.options), expected, strict=True):
        assert torch.equal(ours, theirs)


def test_channels_of_a_thread(monkeypatch):
    """As many as can be, up to 4, with no more channels idle than with one, and programs for all multiprocessors."""
    set_spans(monkeypatch, many=False)
    expected = {1: 1, 32: 1, 96: 1, 128: 4, 192: 2, 193: 1, 384: 4, 1536: 4}
    assert {channels: _vector(_problem(channels)) for channels in expected} == expected
    monkeypatch.setattr(plan, "warps_wanted", lambda device: 4)
    assert [_vector(_problem(channels)) for channels in (128, 192, 384, 640)] == [1, 1, 2, 4]


def test_channels_that_lie_apart(monkeypatch):
    """A thread reads neighbours at once where each token's channels begin at a multiple of as many."""
    set_spans(monkeypatch, many=False)
    given = _problem(128)
    apart = given.u.new_zeros(1, 1, 3, 130)[..., 1:129]
    assert [_vector(given, part) for part in (apart, apart.contiguous())] == [1, 4]


def _problem(channels):
    case = MapCase(dim=channels, size=(1, 3), batch=1, dtype=torch.float32)
    options = case.options
    codes = [ROUTES.index(route) for route in options["routes"]]
    tensors = {name: tensor.detach() for name, tensor in case.inputs().items()}
    return problem.Problem.of(
        Scan2d(**tensors, route_codes=codes, carry=False, merge=True, softplus=True, chunk=8, dtype=None)
    )


def _vector(given, other=None):
    tile = plan.forward_tile(1, torch.float32)
    return given._plan(tile, given.u if other is None else other).constants["VECTOR"]


def test_an_image_beyond_32_bits():
    assert maps.strides(torch.empty(2, 3, 4, 5, device="meta")) == (60, 5)
    assert maps.strides(torch.empty(2, 3, 4, 1, 5, device="meta")) == (60, 20, 5)
    with pytest.raises(ValueError, match="more than 2147483647 numbers, which backend 'triton' does not reach"):
        maps.strides(torch.empty(1, 40000, 40000, 2, device="meta"))


def test_why_not(monkeypatch):
    why_not = triton_scan.why_not.__wrapped__  # which is asked once for each device
    real = triton.JITFunction(forward_kernel.scan_forward.fn)
    with monkeypatch.context() as patch:
        patch.setattr(forward_kernel, "scan_forward", real)
        assert "NVIDIA" in why_not(torch.device("cpu"))
        patch.setattr(torch.cuda, "is_available", lambda: False)
        assert "sees no NVIDIA GPU" in why_not(torch.device("cuda"))
        patch.setattr(torch.cuda, "is_available", lambda: True)
        patch.setattr(torch.cuda, "get_device_capability", lambda device: (7, 0))
        assert "7.5" in why_not(torch.device("cuda"))
        patch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))
        assert why_not(torch.device("cuda")) is None
    monkeypatch.setitem(sys.modules, "triton", None)
    assert "not installed" in why_not(torch.device("cuda"))


# Of those for a number of a map; of convolutions, that of 7 x 7 with a stride of 2 has most.
MOST_INSTRUCTIONS_OF_FUSED_OPS = {
    "convolve": 155,
    "conv_backward_activation": 160,
    "conv_backward_weight": 85,
    "gate_forward": 24,
    "gate_backward": 40,
    "norm_forward": 22,
    "norm_backward": 40,
    "normalise_half": 56,
    "merge_forward": 48,
    "merge_backward_full": 46,
    "merge_backward_half": 180,
}


@pytest.mark.slow
@pytest.mark.parametrize(
    "capability",
    [90, pytest.param(80, marks=pytest.mark.skipif(not SIMULATED, reason="`make simulate` compiles for it, too"))],
)
def test_instructions_and_registers(capability):
    """Every kernel compiles, spills little or nothing, and has no more instructions than agreed."""
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    command = [sys.executable, "-m", "benchmarks.triton_resources", "--json", "--capability", str(capability)]
    result = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    rows = json.loads(result.stdout)
    names = {row["kernel"].partition(",")[0] for row in rows}
    assert names >= {"summarise", "carry_over", "scan_forward", "scan_backward", "summarise backward"}
    assert names >= set(MOST_INSTRUCTIONS_OF_FUSED_OPS)
    assert {row["capability"] for row in rows} == {capability}
    # Where routes add up, the early reading of what was added takes registers: with spills, it is faster on an H100.
    spilled = [row for row in rows if row["spilled bytes"]]
    assert {(row["kernel"], row["case"]) for row in spilled} <= {
        ("scan_backward", "row_rev+col+col_rev"),
        ("scan_backward, gated", "1-D from a state to a state"),
    }
    assert max((row["spilled bytes"] for row in spilled), default=0) <= 224
    # What decides the speed on a GPU; a change of the kernels that costs more is one to look at.
    limits = {
        **{("scan_forward", 1): 45, ("scan_backward", 1): 107, ("scan_forward", 16): 240, ("scan_backward", 16): 950},
        **{("scan_forward, gated", 1): 61, ("scan_backward, gated", 1): 120},
        **{("scan_forward, gated", 16): 257, ("scan_backward, gated", 16): 905},
    }
    rows = [row for row in rows if row["dtype"] != "float64" and row["N"] and row["channels a thread"] != 1]
    assert {(row["kernel"], row["N"]) for row in rows} >= limits.keys()
    for row in rows:
        limit = limits.get((row["kernel"], row["N"]))
        assert limit is None or row["instructions a pair"] <= limit, row
    fused = [row for row in json.loads(result.stdout) if row["N"] == ""]
    assert len(fused) > 25
    for row in fused:
        assert row["instructions a pair"] <= MOST_INSTRUCTIONS_OF_FUSED_OPS[row["kernel"].partition(",")[0]], row
