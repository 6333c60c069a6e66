"""Interleaved timing: the candidates take turns, so that whatever else the machine does falls on all of them alike.

:func:`interleave` is for calls of microseconds, and a sample is the mean over several. :func:`take_turns` is for calls
of milliseconds to minutes: each is a sample, and one that fails does not stop the others.
"""

import contextlib
import gc
import math
import time
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import NamedTuple, TypeVar

import torch

K = TypeVar("K", bound=Hashable)

# A sample of interleave is at least this long: shorter calls are repeated, after one that is not timed, since the
# caches hold what the candidate before has left there.
_SAMPLE_SECONDS = 5e-3
# A call longer than this is timed once: its spread is small against its time, and the rounds would take minutes.
_ONCE_ABOVE = 1.0
_FEWEST_ROUNDS, _MOST_ROUNDS = 3, 25
# A turn of take_turns is at least this long, or has so many calls.
_TURN_SECONDS, _MOST_CALLS = 0.2, 20
# Calls have settled when one is not faster than the fastest before it by more than a twentieth.
_SETTLED, _MOST_WARM_UPS = 0.95, 10
# What a model raises that does not fit in memory, cannot be compiled, or is not made for the size of an image: those of
# others raise what they like, an AssertionError for instance. Which it was, the report says.
FAILURES = Exception


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
        return ratios(self.samples, other.samples)


class Turns(NamedTuple):
    """Seconds of every call, round by round."""

    rounds: tuple[tuple[float, ...], ...]

    @property
    def calls(self) -> tuple[float, ...]:
        """All of them, in their order."""
        return tuple(seconds for turn in self.rounds for seconds in turn)

    @property
    def median(self) -> float:
        return quantile(self.calls, 0.5)

    def ratio(self, other: "Turns") -> tuple[float, ...]:
        """How many times as long as ``other``, round by round."""
        return ratios(*([quantile(turn, 0.5) for turn in turns.rounds] for turns in (self, other)))


def quantile(samples: Sequence[float], q: float) -> float:
    """Return the ``q``-quantile, linear between samples."""
    return torch.tensor(samples, dtype=torch.float64).quantile(q).item()


def ratios(mine: Sequence[float], its: Sequence[float]) -> tuple[float, ...]:
    """Divide round by round; only the medians, if the rounds are not the same."""
    if len(mine) == len(its):
        return tuple(a / b for a, b in zip(mine, its, strict=True))
    return (quantile(mine, 0.5) / quantile(its, 0.5),)


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


def take_turns(
    calls: Mapping[K, Callable[[], object]],
    device: torch.device,
    seconds: float,
    fewest: int = _FEWEST_ROUNDS,
    tell: Callable[[K, str], None] = lambda key, text: None,
) -> tuple[dict[K, Turns], dict[K, str]]:
    """Time the calls in turns, each call of each turn; each round begins with another one.

    Args:
        calls: By any key.
        device: What they run on; on a GPU the time is that between two events, with nothing queued before the first.
        seconds: No new round begins after this long, and no warm-up goes on for longer.
        fewest: There are so many rounds at least.
        tell: Is told whose turn it is, and in which round.

    Returns:
        The times of those that ran, in the order of ``calls``, and why the others did not.
    """
    reasons: dict[K, str] = {}
    repeats: dict[K, int] = {}
    for key, call in calls.items():
        tell(key, "warm-up")
        try:
            repeats[key] = _turn_length(_warm_up(call, device, seconds))
        except FAILURES as error:
            reasons[key] = explain(error)
    rounds: dict[K, list[tuple[float, ...]]] = {key: [] for key in repeats}
    begin, done = time.perf_counter(), 0
    while repeats and (done < fewest or time.perf_counter() - begin < seconds):
        done += 1
        keys = tuple(repeats)
        for key in keys[done % len(keys) :] + keys[: done % len(keys)]:
            tell(key, f"round {done}")
            try:
                rounds[key].append(_turn(calls[key], device, repeats[key]))
            except FAILURES as error:
                reasons[key] = explain(error)
                del repeats[key]
    return {key: Turns(tuple(rounds[key])) for key in calls if key in repeats}, reasons


def explain(error: BaseException) -> str:
    """Say in one line what went wrong."""
    first = next(iter(str(error).strip().splitlines()), "")
    # On a CPU it is a RuntimeError that says so.
    if isinstance(error, (torch.cuda.OutOfMemoryError, MemoryError)) or "can't allocate memory" in first:
        return "out of memory"
    text = f"{type(error).__name__}: {first}".replace("|", "/")
    return text if len(text) <= 160 else f"{text[:157]}..."


def _warm_up(call: Callable[[], object], device: torch.device, seconds: float) -> float:
    """Call until that is not getting faster, at least twice; return the seconds of the fastest call."""
    begin, fastest = time.perf_counter(), math.inf
    for done in range(_MOST_WARM_UPS):
        with _no_garbage_collection():
            taken = _clock(device)(call, 1)
        if done and (taken > _SETTLED * fastest or time.perf_counter() - begin > seconds):
            return min(taken, fastest)
        fastest = min(taken, fastest)
    return fastest


def _turn_length(seconds: float) -> int:
    return max(1, min(_MOST_CALLS, math.ceil(_TURN_SECONDS / max(seconds, 1e-7))))


def _turn(call: Callable[[], object], device: torch.device, times: int) -> tuple[float, ...]:
    with _no_garbage_collection():
        if times > 1:  # as in _sample; what takes longer than a turn fills its caches in a small part of its time
            call()
        return tuple(_clock(device)(call, 1) for _ in range(times))


def _sample(candidate: Candidate, device: torch.device, repeats: int) -> tuple[float, float]:
    """Return the seconds a call and the cores kept busy."""
    with candidate.active(), _no_garbage_collection():
        if repeats > 1:
            candidate.call()
        wall, cpu = time.perf_counter(), time.process_time()
        seconds = _clock(device)(candidate.call, repeats)
        wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    return seconds / repeats, cpu / wall


@contextlib.contextmanager
def _no_garbage_collection() -> Iterator[None]:
    gc.disable()
    try:
        yield
    finally:
        gc.enable()


def _clock(device: torch.device) -> Callable[[Callable[[], object], int], float]:
    return _cuda_seconds if device.type == "cuda" else _wall_seconds


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
