"""``python -m mmmsv.kernels``: which backends can run here, why the others cannot, and how fast each is."""

import argparse
import statistics
import time
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from .dispatch import BACKENDS, Backend, automatic, select, use_backend
from .scan import scan2d, selective_scan

_CHANNELS, _RANK = 192, 6
_STATE, _GROUPS = 16, 2
# Sides of the square maps, each tried when the one before says that it takes no longer than this; sequences have as
# many tokens.
_SIDES = (8, 14, 56)
_SECONDS = 0.3
_CALLS = 5


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m mmmsv.kernels",
        description="Says which backends of the selective scan can run here, why the others cannot, and how fast each "
        "is. The environment variable MMMSV_BACKEND asks for one by its name.",
    )
    parser.parse_args()
    print(f"torch {torch.__version__}, {torch.backends.cpu.get_cpu_capability()}, {torch.get_num_threads()} threads")
    print("Times for each token and channel, float32, of as many tokens as the backend was tried with:")
    print(f"  maps       scan2d of 1 x side x side x {_CHANNELS}, N = 1, R = {_RANK}, one route")
    print(f"  sequences  selective_scan of 1 x {_CHANNELS} x tokens, N = {_STATE}, {_GROUPS} groups, with z")
    print(f"\n{'device':8}{'backend':12}{'':11}{'tokens':>6}{'forward, ns':>13}{'forward+backward, ns':>22}")
    for device in _devices():
        for line in report(device):
            print(line)


def _devices() -> list[torch.device]:
    return [torch.device(name) for name in ("cpu", "cuda") if name == "cpu" or torch.cuda.is_available()]


def report(device: torch.device) -> list[str]:
    """Return the lines of each backend, and one where the automatic choice is overruled or cannot be."""
    chosen = automatic(_name, device)
    lines = []
    for name, backend in BACKENDS.items():
        row, note = f"{device.type:8}{name:12}", "  automatic choice" if name == chosen else ""
        if reason := "it has no scan" if backend.scan2d is None else backend.why_not(device):
            lines.append(f"{row}cannot run: {reason}")
            continue
        for what, workload in WORKLOADS.items():
            if what == "sequences" and backend.selective_scan is None:
                continue
            tokens, forward, both = measure(name, workload, device)
            lines.append(f"{row}{what:11}{tokens:6}{forward:13.2f}{both:22.2f}{note}")
            row, note = f"{'':20}", ""
        lines += [f"{'':10}{what}: {choice}" for what, choice in backend.choices().items()]
    try:
        asked = select(_name, device)
    except (ValueError, RuntimeError) as error:
        return [*lines, f"Scans on {device.type} will fail: {error}"]
    if asked != chosen:
        lines.append(f"Asked for by the environment, instead of the automatic choice: {asked}")
    return lines


def _name(backend: Backend) -> str | None:
    """Return the name of a backend that has a scan."""
    return None if backend.scan2d is None else backend.name


class Workload(NamedTuple):
    """What is timed: inputs for a map of some side, or for as many tokens, and the call that takes them."""

    inputs: Callable[[int], list[Tensor]]
    call: Callable[[list[Tensor]], Tensor]


def _of_maps(side: int) -> list[Tensor]:
    tokens, weights = (1, side, side), (1, _CHANNELS)
    shapes = ((*tokens, _CHANNELS), (*tokens, 1, _RANK), (*tokens, 1, 1), (*tokens, 1, 1))
    *others, skip = _drawn(*shapes, (*weights, _RANK), weights, weights)
    return [*others, -torch.ones(*weights, 1), skip]


def _of_sequences(side: int) -> list[Tensor]:
    of_channels, of_groups = (1, _CHANNELS, side * side), (1, _GROUPS, _STATE, side * side)
    u, delta, B, C, D, z, bias = _drawn(
        *(of_channels, of_channels, of_groups, of_groups), (_CHANNELS,), of_channels, (_CHANNELS,)
    )
    return [u, delta, -torch.ones(_CHANNELS, _STATE), B, C, D, z, bias]


def _drawn(*shapes: tuple[int, ...]) -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(shape, generator=generator) for shape in shapes]


WORKLOADS = {
    "maps": Workload(_of_maps, lambda inputs: scan2d(*inputs, routes=("row",))),
    "sequences": Workload(_of_sequences, lambda inputs: selective_scan(*inputs, delta_softplus=True)),
}


def measure(name: str, workload: Workload, device: torch.device) -> tuple[int, float, float]:
    """Return the most tokens tried, and ns a token and channel of the forward pass and of forward and backward."""

    def forward() -> None:
        with torch.no_grad():
            workload.call(inputs)

    def forward_and_backward() -> None:
        y = workload.call(inputs)
        torch.autograd.grad(y, inputs, torch.ones_like(y))

    with use_backend(name):
        for side, larger in zip(_SIDES, (*_SIDES[1:], None), strict=True):
            inputs = [tensor.to(device).requires_grad_() for tensor in workload.inputs(side)]
            seconds, both = (_median_seconds(call, device) for call in (forward, forward_and_backward))
            if larger is None or both * (larger / side) ** 2 > _SECONDS:
                break
    pairs = side * side * _CHANNELS
    return side * side, 1e9 * seconds / pairs, 1e9 * both / pairs


def _median_seconds(call: Callable[[], None], device: torch.device) -> float:
    seconds = []
    for _ in range(1 + _CALLS):  # the first one warms up
        _synchronize(device)
        begin = time.perf_counter()
        call()
        _synchronize(device)
        seconds.append(time.perf_counter() - begin)
    return statistics.median(seconds[1:])


def _synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


if __name__ == "__main__":
    main()
