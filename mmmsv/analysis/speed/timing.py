"""Time calls in turns, so that whatever else the machine does affects all of them equally."""

import contextlib
import gc
import math
import time
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import NamedTuple, TypeVar

import torch

from .clock import clock, replayed

K = TypeVar("K", bound=Hashable)

_FEWEST_ROUNDS = 3
# A turn has as many calls as fill the first, and at most the second.
_TURN_SECONDS, _MOST_CALLS = 0.2, 20
# The same of short calls, without a limit; one of them that takes longer than the second is timed once: its spread is
# small against its time, and the rounds would take minutes.
_SHORT_TURN_SECONDS, _ONCE_ABOVE = 5e-3, 1.0
# Calls have settled when one is not faster than the fastest before it by more than a twentieth.
_SETTLED, _MOST_WARM_UPS = 0.95, 10
# A model that does not fit in memory, cannot be compiled, or is not made for the size of an image may raise anything,
# an AssertionError for instance. The report says which it was.
FAILURES = Exception


class Candidate(NamedTuple):
    """What is timed, and the context that it runs in (entered outside of the timed part)."""

    call: Callable[[], object]
    active: Callable[[], AbstractContextManager[object]] = nullcontext


class Timing(NamedTuple):
    """Seconds of a call: the samples of each round, how many cores the process kept busy meanwhile, and how they were
    taken, of short calls in the words of :func:`~.clock.replayed`.
    """

    rounds: tuple[tuple[float, ...], ...]
    cores: float = math.nan
    how: str = "calls"

    @property
    def samples(self) -> tuple[float, ...]:
        """All of them, in their order."""
        return tuple(seconds for turn in self.rounds for seconds in turn)

    @property
    def median(self) -> float:
        return quantile(self.samples, 0.5)

    def ratio(self, other: "Timing") -> tuple[float, ...]:
        """Return how many times as long as ``other``, round by round; of the medians where either was timed once."""
        if len(self.rounds) != len(other.rounds):
            return (self.median / other.median,)
        return tuple(quantile(a, 0.5) / quantile(b, 0.5) for a, b in zip(self.rounds, other.rounds, strict=True))


class _Turn(NamedTuple):
    samples: tuple[float, ...]
    cores: float


def quantile(samples: Sequence[float], q: float) -> float:
    """Return the ``q``-quantile, linear between samples."""
    return torch.tensor(samples, dtype=torch.float64).quantile(q).item()


def take_turns(
    candidates: Mapping[K, Candidate],
    device: torch.device,
    seconds: float,
    fewest: int = _FEWEST_ROUNDS,
    short: bool = False,
    show: Callable[[K, str], None] = lambda key, text: None,
) -> tuple[dict[K, Timing], dict[K, str]]:
    """Time the candidates in turns; each round begins with another one, and one that fails does not stop the others.

    Args:
        candidates: By any key.
        device: What they run on; on a GPU the time is that between two events, with nothing queued before the first.
        seconds: No new round begins after this long, and no warm-up goes on for longer.
        fewest: Rounds that there are at least.
        short: Whether calls take microseconds. A sample then is the mean over the calls of a turn, on a GPU of replays
            of their kernels where these can be captured; else it is one call, with all that Python does.
        show: Called with a key and what is done with its candidate.

    Returns:
        The times of those that ran, in the order of ``candidates``, and why the others did not.
    """
    turns: dict[K, list[_Turn]] = {}
    reasons: dict[K, str] = {}
    calls: dict[K, int] = {}  # in a turn, of those that have more turns
    running, how = dict(candidates), dict.fromkeys(candidates, "calls")
    for key, candidate in candidates.items():
        show(key, "warm-up")
        try:
            if short:
                with candidate.active():
                    call, how[key] = replayed(candidate.call, device)
                running[key] = candidate._replace(call=call)
            fastest = _warm_up(running[key], device, seconds, short)
        except FAILURES as error:
            reasons[key] = explain(error)
            continue
        once = short and fastest.samples[0] > _ONCE_ABOVE
        turns[key] = [fastest] if once else []
        if not once:
            calls[key] = _calls_in_a_turn(fastest.samples[0], short)
    begin, done = time.perf_counter(), 0
    while calls and (done < fewest or time.perf_counter() - begin < seconds):
        done += 1
        keys = tuple(calls)
        for key in keys[done % len(keys) :] + keys[: done % len(keys)]:
            show(key, f"round {done}")
            try:
                turns[key].append(_turn(running[key], device, calls[key], short))
            except FAILURES as error:
                reasons[key] = explain(error)
                del calls[key], turns[key]
    timings = {
        key: Timing(tuple(turn.samples for turn in its), quantile([turn.cores for turn in its], 0.5), how[key])
        for key, its in turns.items()
    }
    return timings, reasons


def explain(error: BaseException) -> str:
    """Say in one line what went wrong."""
    first = next(iter(str(error).strip().splitlines()), "")
    # On a CPU it is a RuntimeError that says so.
    if isinstance(error, (torch.cuda.OutOfMemoryError, MemoryError)) or "can't allocate memory" in first:
        return "out of memory"
    text = f"{type(error).__name__}: {first}".replace("|", "/")
    return text if len(text) <= 160 else f"{text[:157]}..."


def _warm_up(candidate: Candidate, device: torch.device, seconds: float, short: bool) -> _Turn:
    """Call until that is not getting faster, at least twice unless it is timed once; return the fastest call."""
    begin, fastest = time.perf_counter(), _Turn((math.inf,), math.nan)
    for done in range(_MOST_WARM_UPS):
        turn = _turn(candidate, device, 1, short)
        settled = turn.samples[0] > _SETTLED * fastest.samples[0] or time.perf_counter() - begin > seconds
        fastest = min(turn, fastest)
        if (done and settled) or (short and turn.samples[0] > _ONCE_ABOVE):
            break
    return fastest


def _calls_in_a_turn(seconds: float, short: bool) -> int:
    fill = math.ceil((_SHORT_TURN_SECONDS if short else _TURN_SECONDS) / max(seconds, 1e-7))
    return max(1, fill if short else min(fill, _MOST_CALLS))


def _turn(candidate: Candidate, device: torch.device, calls: int, short: bool) -> _Turn:
    seconds_of = clock(device)
    with candidate.active(), _no_garbage_collection():
        if calls > 1:  # not timed: the caches hold what the candidate before has left there
            candidate.call()
        wall, cpu = time.perf_counter(), time.process_time()
        if short:
            samples = (seconds_of(candidate.call, calls) / calls,)
        else:
            samples = tuple(seconds_of(candidate.call, 1) for _ in range(calls))
        wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    return _Turn(samples, cpu / wall)


@contextlib.contextmanager
def _no_garbage_collection() -> Iterator[None]:
    gc.disable()
    try:
        yield
    finally:
        gc.enable()
