"""Interleaved timing: the candidates take turns, so that whatever else the machine does falls on all of them alike."""

import contextlib
import gc
import math
import time
from collections.abc import Callable, Hashable, Iterator, Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import NamedTuple, TypeVar

import torch

K = TypeVar("K", bound=Hashable)

# A sample is at least this long: shorter calls are repeated, after one that is not timed, since the caches hold what
# the candidate before has left there.
_SAMPLE_SECONDS = 5e-3
# A call longer than this is timed once: its spread is small against its time, and the rounds would take minutes.
_ONCE_ABOVE = 1.0
_FEWEST_ROUNDS, _MOST_ROUNDS = 3, 25


class Candidate(NamedTuple):
    """What is timed, and the context that it runs in (entered outside of the timed part)."""

    call: Callable[[], object]
    active: Callable[[], AbstractContextManager[object]] = nullcontext


class Timing(NamedTuple):
    """Seconds a call, one sample for each round, and how many cores the process kept busy meanwhile."""

    samples: tuple[float, ...]
    cores: float

    @property
    def median(self) -> float:
        return quantile(self.samples, 0.5)

    def ratio(self, other: "Timing") -> tuple[float, ...]:
        """How many times as long as ``other``, round by round; of medians where either was timed once."""
        if len(self.samples) == len(other.samples):
            return tuple(mine / its for mine, its in zip(self.samples, other.samples, strict=True))
        return (self.median / other.median,)


def quantile(samples: tuple[float, ...], q: float) -> float:
    """Return the ``q``-quantile, linear between samples."""
    return torch.tensor(samples, dtype=torch.float64).quantile(q).item()


def interleave(candidates: Mapping[K, Candidate], device: torch.device, seconds: float) -> dict[K, Timing]:
    """Time the candidates in turns, round after round.

    Args:
        candidates: By any key.
        device: What they run on; on a GPU the time is that between two events, not that of the launches.
        seconds: No new round begins after this long; there are three rounds at least.
    """
    timings: dict[K, Timing] = {}
    repeats: dict[K, int] = {}
    for key, candidate in candidates.items():
        first = _sample(candidate, device, 1)
        if first[0] > _ONCE_ABOVE:
            timings[key] = Timing((first[0],), first[1])
        else:  # the second call says how long one takes: the first may have compiled, or filled caches
            repeats[key] = math.ceil(_SAMPLE_SECONDS / max(_sample(candidate, device, 1)[0], 1e-7))
    samples: dict[K, list[tuple[float, float]]] = {key: [] for key in repeats}
    begin = time.perf_counter()
    for done in range(_MOST_ROUNDS):
        if done >= _FEWEST_ROUNDS and time.perf_counter() - begin > seconds:
            break
        for key, times in repeats.items():
            samples[key].append(_sample(candidates[key], device, times))
    for key, pairs in samples.items():
        taken, cores = zip(*pairs, strict=True)
        timings[key] = Timing(taken, quantile(cores, 0.5))
    return timings


def _sample(candidate: Candidate, device: torch.device, repeats: int) -> tuple[float, float]:
    """Return the seconds a call and the cores kept busy."""
    with candidate.active(), _no_garbage_collection():
        if repeats > 1:
            candidate.call()
        clock = _cuda_seconds if device.type == "cuda" else _wall_seconds
        wall, cpu = time.perf_counter(), time.process_time()
        seconds = clock(candidate.call, repeats)
        wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    return seconds / repeats, cpu / wall


@contextlib.contextmanager
def _no_garbage_collection() -> Iterator[None]:
    gc.disable()
    try:
        yield
    finally:
        gc.enable()


def _wall_seconds(call: Callable[[], object], repeats: int) -> float:
    begin = time.perf_counter()
    for _ in range(repeats):
        call()
    return time.perf_counter() - begin


def _cuda_seconds(call: Callable[[], object], repeats: int) -> float:
    begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    begin.record()
    for _ in range(repeats):
        call()
    end.record()
    end.synchronize()
    return begin.elapsed_time(end) / 1e3
