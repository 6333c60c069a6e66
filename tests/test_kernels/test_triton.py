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

from .scan_inputs import MAP_NAMES, NAMES, TOLERANCE, MapCase, assert_near, exact, exact_map, run, run_map, scan_inputs

if reason := triton_scan.why_no_triton():
    pytest.skip(reason, allow_module_level=True)

import triton

from mmmsv.kernels.backends.triton import kernels as triton_kernels

ROOT = Path(__file__).parents[2]
CARRIED = MapCase(routes=("row_rev", "col", "col_rev"), carry=True, state=2, batch=1, dtype=torch.float32)


def set_spans(monkeypatch, many):
    """Make the device seem large enough for a program to each chunk, or small enough for one program to a sequence."""
    monkeypatch.setattr(triton_scan, "_warps_wanted", lambda device: 1 << 20 if many else 1)


@pytest.mark.slow
@pytest.mark.parametrize("many", [False, True])
@pytest.mark.parametrize("case", [CARRIED, dataclasses.replace(CARRIED, routes=("row", "col"), sets=2, carry=False)])
def test_one_span_and_many(monkeypatch, many, case):
    set_spans(monkeypatch, many)
    case = dataclasses.replace(case, size=(13, 11), state=1)
    for name, ours, theirs in zip(
        ("y", *MAP_NAMES), run_map("triton", case.inputs(), case.options), exact_map(case), strict=True
    ):
        assert_near(ours, theirs, TOLERANCE[case.dtype], name)


@pytest.mark.parametrize("length", [129, 192])
def test_borders_of_chunks(monkeypatch, length):
    """The last span has one token, or a whole chunk."""
    set_spans(monkeypatch, many=True)
    inputs = scan_inputs(batch=1, length=length, dtype=torch.float32)
    for name, ours, theirs in zip(("y", *NAMES), run("triton", inputs), run("reference", exact(inputs)), strict=True):
        assert_near(ours, theirs, TOLERANCE[torch.float32], name)


@pytest.mark.slow
def test_more_spans_than_a_tile(monkeypatch):
    """The carry over the spans goes on from one tile of spans to the next."""
    set_spans(monkeypatch, many=True)
    length = 64 * triton_scan._TILE + 1
    inputs = scan_inputs(batch=1, dim=1, length=length, dtype=torch.float32)
    with torch.no_grad():
        inputs["A"].mul_(1e-3)  # a state that lasts as long as the sequence
    for name, ours, theirs in zip(("y", *NAMES), run("triton", inputs), run("reference", exact(inputs)), strict=True):
        assert_near(ours, theirs, TOLERANCE[torch.float32], name)


def test_long_offsets(monkeypatch):
    """Offsets of 64 bits, for which real inputs would have to have gigabytes, give the same."""
    expected = run_map("triton", CARRIED.inputs(), CARRIED.options)
    monkeypatch.setattr(triton_scan, "_extent", lambda tensor: 1 << 31)
    for ours, theirs in zip(run_map("triton", CARRIED.inputs(), CARRIED.options), expected, strict=True):
        assert torch.equal(ours, theirs)


def test_blocks_of_channels():
    """As large as can be, with no more channels idle than one warp would leave."""
    expected = {1: 32, 32: 32, 96: 32, 128: 128, 192: 64, 193: 32, 384: 128, 1536: 128}
    assert {channels: triton_scan._block(channels) for channels in expected} == expected


def test_why_not(monkeypatch):
    real = triton.JITFunction(triton_kernels.scan_forward.fn)
    with monkeypatch.context() as patch:
        patch.setattr(triton_kernels, "scan_forward", real)
        assert "NVIDIA" in triton_scan.why_not(torch.device("cpu"))
        patch.setattr(torch.cuda, "is_available", lambda: False)
        assert "sees no NVIDIA GPU" in triton_scan.why_not(torch.device("cuda"))
        patch.setattr(torch.cuda, "is_available", lambda: True)
        patch.setattr(torch.cuda, "get_device_capability", lambda device: (7, 0))
        assert "7.5" in triton_scan.why_not(torch.device("cuda"))
        patch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))
        assert triton_scan.why_not(torch.device("cuda")) is None
    monkeypatch.setitem(sys.modules, "triton", None)
    assert "not installed" in triton_scan.why_not(torch.device("cuda"))


@pytest.mark.slow
def test_kernels_fit_in_the_registers():
    """Every kernel compiles for sm_80 and sm_90, and spills nothing."""
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    command = [sys.executable, "-m", "benchmarks.triton_resources", "--json"]
    result = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=600)
    assert result.returncode == 0, result.stderr
    rows = json.loads(result.stdout)
    assert {row["kernel"] for row in rows} >= {"summarise", "carry_over", "scan_forward", "scan_backward"}
    assert {row["capability"] for row in rows} == {80, 90}
    assert not [row for row in rows if row["spilled_bytes"]]
