"""``python -m mmmsv.kernels``: which backends can run here, why the others cannot, and how fast each is."""

import argparse
import statistics
import time
from collections.abc import Callable

import torch
from torch import Tensor

from .dispatch import BACKENDS, Backend, automatic, select, use_backend
from .scan import scan2d

_CHANNELS, _RANK = 192, 6
# Sides of the square maps, each tried when the one before says that it takes no longer than this.
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
    print(f"ns per token and channel: scan2d of 1 x side x side x {_CHANNELS}, N = 1, R = {_RANK}, float32, one route")
    print(f"\n{'device':8}{'backend':12}{'side':>6}{'forward':>10}{'forward+backward':>18}")
    for device in _devices():
        for line in report(device):
            print(line)


def _devices() -> list[torch.device]:
    return [torch.device(name) for name in ("cpu", "cuda") if name == "cpu" or torch.cuda.is_available()]


def report(device: torch.device) -> list[str]:
    """Return a line for each backend, and one where the automatic choice is overruled or cannot be."""
    chosen = automatic(_name, device)
    lines = []
    for name, backend in BACKENDS.items():
        if reason := "it has no scan" if backend.scan2d is None else backend.why_not(device):
            text = f"  cannot run: {reason}"
        else:
            side, forward, both = measure(name, device)
            text = f"{side:6}{forward:10.2f}{both:18.2f}{'  automatic choice' if name == chosen else ''}"
        lines.append(f"{device.type:8}{name:12}{text}")
        if not reason:
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


def measure(name: str, device: torch.device) -> tuple[int, float, float]:
    """Return the side of the largest map tried, and ns a pair of the forward pass and of forward and backward."""
    with use_backend(name):
        for side, larger in zip(_SIDES, (*_SIDES[1:], None), strict=True):
            inputs = _inputs(side, device)
            forward, both = (_median_seconds(call, inputs, device) for call in (_forward, _forward_and_backward))
            if larger is None or both * (larger / side) ** 2 > _SECONDS:
                break
    pairs = side * side * _CHANNELS
    return side, 1e9 * forward / pairs, 1e9 * both / pairs


def _inputs(side: int, device: torch.device) -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    tokens, weights = (1, side, side), (1, _CHANNELS)
    shapes = ((*tokens, _CHANNELS), (*tokens, 1, _RANK), (*tokens, 1, 1), (*tokens, 1, 1))
    drawn = [torch.randn(shape, generator=generator) for shape in (*shapes, (*weights, _RANK), weights, weights)]
    *others, skip = drawn
    return [tensor.to(device).requires_grad_() for tensor in (*others, -torch.ones(*weights, 1), skip)]


def _forward(inputs: list[Tensor]) -> None:
    with torch.no_grad():
        scan2d(*inputs, routes=("row",))


def _forward_and_backward(inputs: list[Tensor]) -> None:
    y = scan2d(*inputs, routes=("row",))
    torch.autograd.grad(y, inputs, torch.ones_like(y))


def _median_seconds(call: Callable[[list[Tensor]], None], inputs: list[Tensor], device: torch.device) -> float:
    seconds = []
    for _ in range(1 + _CALLS):  # the first one warms up
        _synchronize(device)
        begin = time.perf_counter()
        call(inputs)
        _synchronize(device)
        seconds.append(time.perf_counter() - begin)
    return statistics.median(seconds[1:])


def _synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


if __name__ == "__main__":
    main()
