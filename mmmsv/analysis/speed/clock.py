"""Take the time of calls: the clock's on a CPU; on a GPU what passes between two events, or in replays of a graph."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch

Call = Callable[[], object]


def clock(device: torch.device) -> Callable[[Call, int], float]:
    """Return a function that makes a call so many times on end, and returns the seconds that this took."""
    return _between_events if device.type == "cuda" else _wall_seconds


@contextmanager
def stream_of_its_own(device: torch.device) -> Iterator[None]:
    """Leave the default stream of a GPU, which no graph can capture.

    A backward pass runs on the stream of its forward pass: to be captured, either has to be made in here.
    """
    if device.type != "cuda":
        yield
        return
    with torch.cuda.stream(torch.cuda.Stream(device)):
        yield


def replayed(call: Call, device: torch.device) -> tuple[Call, str]:
    """Return a call that launches the kernels of ``call`` at once, without gaps, and how it is timed so: by a graph.

    Makes the call itself before, for what is compiled, tried and allocated at first. What cannot be captured in a CUDA
    graph is returned as it is, and everything on a CPU.
    """
    if device.type != "cuda":
        return call, "wall clock"
    call()
    torch.cuda.synchronize(device)
    graph = torch.cuda.CUDAGraph()
    try:
        with torch.cuda.graph(graph, stream=torch.cuda.current_stream(device)):
            call()
    except torch.cuda.OutOfMemoryError:
        raise
    except RuntimeError as error:
        torch.cuda.synchronize(device)
        return call, f"events, no graph: {str(error).splitlines()[0][:80]}"
    return graph.replay, "graph"


def host_seconds(call: Call, device: torch.device, calls: int, rounds: int = 5) -> float:
    """Return the least time that Python takes to hand a call to the device, of so many rounds of calls."""
    call()
    times = []
    for _ in range(rounds):
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        times.append(_wall_seconds(call, calls) / calls)
    return min(times)


def _wall_seconds(call: Call, repeats: int) -> float:
    begin = time.perf_counter()
    for _ in range(repeats):
        call()
    return time.perf_counter() - begin


def _between_events(call: Call, repeats: int) -> float:
    begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    begin.record()
    for _ in range(repeats):
        call()
    end.record()
    end.synchronize()
    return begin.elapsed_time(end) / 1e3
