"""Inputs for the scan tests, how to run a backend on them, and how near two results must be."""

import functools
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor

from mmmsv.kernels import BACKENDS, Route, scan2d, selective_scan, use_backend

from ..simulator import SIMULATED

NAMES = ("u", "delta", "A", "B", "C", "D", "delta_bias")
MAP_NAMES = ("x", "dt", "B", "C", "W_dt", "b_dt", "A", "Dskip")

# Relative to the largest absolute value; a wrong index is off by about 1.
TOLERANCE = {torch.float64: 1e-12, torch.float32: 2e-5, torch.bfloat16: 5e-3, torch.float16: 1e-3}


_DEVICES = [torch.device("cpu"), *([torch.device("cuda")] if torch.cuda.is_available() else [])]


def _devices_of(backend: str) -> list[torch.device]:
    return [device for device in _DEVICES if BACKENDS[backend].why_not(device) is None]


def device_of(backend: str) -> torch.device:
    """Return the device that a backend is tested on, the processor if it can run there."""
    return _devices_of(backend)[0]


RUNNABLE = [name for name in BACKENDS if _devices_of(name)]
# Those that an interpreter runs here, in seconds; as parameters of a test, their cases are slow ones.
INTERPRETED = [name for name in RUNNABLE if name == "triton" and not (torch.cuda.is_available() or SIMULATED)]
SLOW_WHERE_INTERPRETED = [
    pytest.param(name, marks=pytest.mark.slow) if name in INTERPRETED else name for name in RUNNABLE
]


def scan_inputs(
    batch: int = 2,
    dim: int = 6,
    length: int = 37,
    state: int = 1,
    groups: int = 1,
    dtype: torch.dtype = torch.float64,
    seed: int = 0,
    all_of_them: bool = False,
) -> dict[str, Tensor]:
    """Random arguments of selective_scan by name, u and delta channels-last in memory; A, D, bias at least float32.

    With z and h0 if ``all_of_them`` are wanted.
    """
    normal, wide = _normal(seed), torch.promote_types(dtype, torch.float32)
    inputs = {
        "u": normal(batch, length, dim).transpose(1, 2).to(dtype),
        "delta": 2 * normal(batch, length, dim).transpose(1, 2).to(dtype),
        "A": -normal(dim, state).exp().to(wide),
        "B": normal(batch, groups, state, length).to(dtype),
        "C": normal(batch, groups, state, length).to(dtype),
        "D": normal(dim).to(wide),
        "delta_bias": normal(dim).to(wide),
    }
    if all_of_them:
        inputs["z"] = normal(batch, length, dim).transpose(1, 2).to(dtype)
        inputs["h0"] = normal(batch, dim, state).to(wide)
    return {name: tensor.requires_grad_() for name, tensor in inputs.items()}


@dataclass(frozen=True)
class MapCase:
    """Sizes, routes and dtype of one test of scan2d; hashable, so that the oracle computes each once."""

    size: tuple[int, int] = (5, 3)
    dim: int = 6
    state: int = 1
    rank: int = 2
    batch: int = 2
    routes: tuple[Route, ...] = ("row",)
    sets: int = 1
    carry: bool = False
    merge: bool = True
    dtype: torch.dtype = torch.float64
    y_dtype: torch.dtype | None = None

    def __str__(self) -> str:
        """Name the case in the ids of tests."""
        return f"{'+'.join(self.routes)}{',carry' * self.carry}{',apart' * (not self.merge)}"

    @property
    def options(self) -> dict:
        return {"routes": self.routes, "carry": self.carry, "merge": self.merge, "dtype": self.y_dtype}

    def inputs(self) -> dict[str, Tensor]:
        """Random arguments by name, leaves that require gradients; weights at least float32."""
        normal, wide = _normal(0), torch.promote_types(self.dtype, torch.float32)
        tokens = (self.batch, *self.size)
        inputs = {
            "x": normal(*tokens, self.dim).to(self.dtype),
            "dt": normal(*tokens, self.sets, self.rank).to(self.dtype),
            "B": normal(*tokens, self.sets, self.state).to(self.dtype),
            "C": normal(*tokens, self.sets, self.state).to(self.dtype),
            "W_dt": (normal(self.sets, self.dim, self.rank) / self.rank**0.5).to(wide),
            "b_dt": (normal(self.sets, self.dim) - 1).to(wide),
            "A": -normal(self.sets, self.dim, self.state).exp().to(wide),
            "Dskip": normal(self.sets, self.dim).to(wide),
        }
        return {name: tensor.requires_grad_() for name, tensor in inputs.items()}


def run(backend: str, inputs: dict[str, Tensor], softplus: bool = True) -> tuple[Tensor, ...]:
    """Return y of selective_scan and the gradients of a loss that weighs each output differently, in order of NAMES."""
    return _run(backend, functools.partial(selective_scan, delta_softplus=softplus), inputs)


def run_with_last_state(backend: str, inputs: dict[str, Tensor], softplus: bool = True) -> tuple[Tensor, ...]:
    """Return y, the last state, and the gradients of a loss of both, in the order of the inputs."""
    return _run(backend, functools.partial(selective_scan, delta_softplus=softplus, return_last_state=True), inputs)


def run_map(backend: str, inputs: dict[str, Tensor], options: dict) -> tuple[Tensor, ...]:
    """As :func:`run` for scan2d, in the order of MAP_NAMES."""
    return _run(backend, functools.partial(scan2d, **options), inputs)


@functools.cache
def exact_map(case: MapCase, backend: str = "reference") -> tuple[Tensor, ...]:
    """Return what the oracle makes in float64 of the rounded inputs of a case, and of the step as a backend rounds it.

    Backend triton has the step made by a product of matrices in the dtype of the inputs.
    """
    scan = functools.partial(_scan_of_rounded_step, case.dtype) if backend == "triton" else scan2d
    options = {name: option for name, option in case.options.items() if name != "dtype"}
    return _run("reference", functools.partial(scan, **options), exact(case.inputs()))


def _scan_of_rounded_step(of_step: torch.dtype, dt: Tensor, W_dt: Tensor, **others: Any) -> Tensor:
    """Run scan2d on a step that is made of rounded weights and rounded itself, with the gradients of an exact one."""
    step = torch.einsum("bhwsr,sdr->bhwsd", dt, _rounded(W_dt, of_step))
    as_it_is = torch.eye(W_dt.shape[1], dtype=dt.dtype).expand(len(W_dt), -1, -1)
    return scan2d(dt=_rounded(step, of_step), W_dt=as_it_is, **others)


def _rounded(tensor: Tensor, dtype: torch.dtype) -> Tensor:
    return tensor + (tensor.to(dtype).to(tensor) - tensor).detach()


def exact(inputs: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor.detach().double().requires_grad_() for name, tensor in inputs.items()}


def assert_near(ours: Tensor, theirs: Tensor, tolerance: float, name: str = "") -> None:
    assert ours.shape == theirs.shape, name
    scale = theirs.detach().abs().max().double().clamp(min=1e-30) if theirs.numel() else 1.0
    torch.testing.assert_close(
        ours.double() / scale, theirs.double() / scale, rtol=0, atol=tolerance, msg=lambda text: f"{name}: {text}"
    )


def loss(y: Tensor) -> Tensor:
    """Weigh each output differently, by numbers that no dtype rounds."""
    weight = torch.arange(y.numel(), dtype=torch.float64).cos().mul(64).round().div(64)
    return (y * weight.view(y.shape).to(y)).sum()


def _run(backend: str, scan: functools.partial, inputs: dict[str, Tensor]) -> tuple[Tensor, ...]:
    device = device_of(backend)
    moved = {name: tensor.detach().to(device).requires_grad_() for name, tensor in inputs.items()}
    with use_backend(backend):
        results = scan(**moved)
        results = results if isinstance(results, tuple) else (results,)
        gradients = torch.autograd.grad(sum(map(loss, results)), list(moved.values()))
    return tuple(tensor.detach().cpu() for tensor in (*results, *gradients))


def _normal(seed: int) -> functools.partial:
    generator = torch.Generator().manual_seed(seed)
    return lambda *shape: torch.randn(shape, generator=generator, dtype=torch.float64)
