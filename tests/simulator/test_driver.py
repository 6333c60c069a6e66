"""Kernels that Triton compiles, launched in the simulator: arguments arrive, results are right, mistakes are found.

Runs where ``MMMSV_SIMULATE=1``; test_selection.py starts a process in which it is.
"""

import pytest
import torch

from mmmsv.kernels.backends.triton.scan import why_no_triton

from . import SIMULATED, SimulationError

if reason := why_no_triton():
    pytest.skip(reason, allow_module_level=True)
if not SIMULATED:
    pytest.skip("runs where MMMSV_SIMULATE=1: test_selection.py starts it", allow_module_level=True)

import triton
import triton.language as tl

from . import driver

driver.install()


@triton.jit
def reverse(given, out, last, BARRIER: tl.constexpr):
    numbers = tl.arange(0, 64)
    tl.store(given + numbers, numbers)
    if BARRIER:
        tl.debug_barrier()
    tl.store(out + numbers, tl.load(given + last - numbers))


@triton.jit
def place_in_grid(out, scale, nothing, offset):
    x, y, z = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    place = (x * tl.num_programs(1) + y) * tl.num_programs(2) + z
    tl.store(out + place - offset, scale * (100 * x + 10 * y + z))
    if nothing is not None:
        tl.store(nothing, scale)


@triton.jit
def normalise(given, out, eps, SIZE: tl.constexpr):
    place = tl.program_id(0) * SIZE + tl.arange(0, SIZE)
    value = tl.load(given + place).to(tl.float32)
    value -= tl.sum(value, 0) / SIZE
    tl.store(out + place, value / tl.sqrt(tl.sum(value * value, 0) / SIZE + eps))


@triton.jit
def add_up(given, out, SIZE: tl.constexpr):
    tl.store(out + tl.arange(0, SIZE), tl.cumsum(tl.load(given + tl.arange(0, SIZE)), 0))


@triton.jit
def copy(given, out, count, SIZE: tl.constexpr):
    numbers = tl.program_id(0) * SIZE + tl.arange(0, SIZE)
    tl.store(out + numbers, tl.load(given + numbers, numbers < count, 0.0), numbers < count)


def whole(count):
    return torch.zeros(count, dtype=torch.int32)


def test_a_kernel_with_a_barrier():
    before, out = driver.launches["reverse"], whole(64)
    reverse[1,](whole(64), out, 63, True, num_warps=2)
    assert torch.equal(out, 63 - torch.arange(64, dtype=torch.int32))
    assert driver.launches["reverse"] == before + 1


def test_a_race_is_found():
    with pytest.raises(SimulationError, match=r"reverse, in .*two threads race.*test_driver\.py:\d+:\d+"):
        reverse[1,](whole(64), whole(64), 63, False, num_warps=2)


def test_an_overrun_is_found():
    with pytest.raises(SimulationError, match=r"reverse: an access of .*tensor of shape \(40,\).*test_driver\.py:\d+"):
        reverse[1,](whole(40), whole(64), 63, True, num_warps=2)


def test_a_race_of_programs_is_found():
    with pytest.raises(SimulationError, match=r"place_in_grid, in .*: two programs race"):
        place_in_grid[2, 3, 4](torch.zeros(24), 1.0, torch.zeros(1), 0)


@pytest.mark.parametrize(("scale", "offset"), [(0.5, 0), (-2.0, -24)])
def test_a_grid_and_arguments(scale, offset):
    out = torch.zeros(48)
    place_in_grid[2, 3, 4](out, scale, None, offset)
    expected = torch.tensor([100 * x + 10 * y + z for x in range(2) for y in range(3) for z in range(4)]) * scale
    assert torch.equal(out[-offset:][:24], expected)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_sums_over_warps(dtype):
    given, out = torch.randn(3, 256).to(dtype), torch.zeros(3, 256)
    normalise[3,](given, out, 1e-5, 256)
    torch.testing.assert_close(out, torch.nn.functional.layer_norm(given.float(), (256,)), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_sums_up_to_each(dtype):
    given, out = torch.randn(128, dtype=dtype), torch.zeros(128, dtype=dtype)
    add_up[1,](given, out, 128, num_warps=2)
    torch.testing.assert_close(out, given.cumsum(0), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("count", [1, 100, 128, 20000])
def test_masks_and_many_programs(count):
    given, out = torch.randn(count + 1), torch.zeros(count + 1)
    copy[triton.cdiv(count, 64),](given[1:], out[1:], count, 64)
    assert torch.equal(out[1:], given[1:])
    assert out[0] == 0


def test_an_empty_grid():
    copy[0,](torch.zeros(1), torch.zeros(1), 1, 64)


def test_a_number_too_large_for_a_parameter():
    with pytest.raises(OverflowError, match=r"a parameter of 32 bits"):
        driver._bits(1 << 32, "u32")
