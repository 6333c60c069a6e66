"""Compare all implementations in a case: agreement first, then time."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial

import torch
from torch import Tensor

from mmmsv.analysis.speed.markdown import number, spread, table
from mmmsv.analysis.speed.memory import rise
from mmmsv.analysis.speed.timing import FAILURES, Candidate, K, Timing, explain, take_turns

from .baselines import BY_TOKEN, Implementation, list_implementations
from .cases import Case

FORWARD, BACKWARD, BOTH = "forward", "backward", "forward+backward"
COPY = "copy"
# Implementations that differ by more, relative to the largest number of a result, do not compute the same function.
_TOLERANCE = {torch.float32: 1e-3, torch.float16: 2e-2, torch.bfloat16: 1e-1}
# Tokens on all routes that an implementation walks one by one on a GPU.
_MOST_LAUNCHED = 256

Key = tuple[str, str]  # the name of an implementation, or COPY, and what of it is timed


class Call:
    """A case with its inputs, and a gradient of y."""

    def __init__(self, case: Case, device: torch.device) -> None:
        self.case = case
        self.inputs = case.inputs(device)
        self.dy = case.output_gradient(self.inputs)

    def results(self, implementation: Implementation) -> tuple[Tensor, ...]:
        """Return y and the gradients of all inputs."""
        with implementation.active():
            return self._forward_backward(implementation)

    def candidate(self, implementation: Implementation, mode: str) -> Candidate:
        """Make a candidate: the forward pass without autograd, the backward pass on a kept graph, or both."""
        if mode == FORWARD:
            call = torch.no_grad()(partial(self.case.run, implementation, self.inputs))
        elif mode == BOTH:
            call = partial(self._forward_backward, implementation)
        else:
            with implementation.active():
                y = self.case.run(implementation, self.inputs)
            call = partial(torch.autograd.grad, y, self.inputs, self.dy, retain_graph=True)
        return Candidate(call, implementation.active)

    def copy(self) -> Candidate:
        """Make a candidate that reads and writes as many numbers as the case does at least: half of them each."""
        source = self.inputs[0].new_ones(self.case.moved // 2)
        return Candidate(partial(torch.empty_like(source).copy_, source))

    def _forward_backward(self, implementation: Implementation) -> tuple[Tensor, ...]:
        y = self.case.run(implementation, self.inputs)
        return (y.detach(), *torch.autograd.grad(y, self.inputs, self.dy))


@dataclass
class Comparison:
    """What was measured of a case, or of several together.

    Args:
        label: For the tables.
        pairs: Tokens times channels, of all routes.
        moved: Bytes that any implementation reads and writes in the forward pass.
        timings: By implementation and what was timed.
        differences: Largest difference of an implementation from the first one, relative to the largest number of the
            result; over y and all gradients.
        reasons: Why an implementation is not in ``timings``.
    """

    label: str
    pairs: int
    moved: int
    timings: dict[Key, Timing] = field(default_factory=dict)
    differences: dict[str, float] = field(default_factory=dict)
    reasons: dict[str, str] = field(default_factory=dict)


def compare(case: Case, implementations: Sequence[Implementation], device: torch.device, seconds: float) -> Comparison:
    """Check each implementation against the first one, then time them, and a plain copy, in turns."""
    call, first = Call(case, device), implementations[0]
    found = Comparison(str(case), case.pairs, case.moved * call.inputs[0].element_size())
    candidates: dict[Key, Candidate] = {(COPY, FORWARD): call.copy()}
    expected = call.results(first)
    for one in implementations:
        if reason := _why_not_timed(found, one, call, expected):
            found.reasons[one.name] = reason
            continue
        modes = (FORWARD, BACKWARD, BOTH) if one is first else (FORWARD, BOTH)
        candidates |= {(one.name, mode): call.candidate(one, mode) for mode in modes}
    found.timings, failed = take_turns(candidates, device, seconds, short=True)
    found.reasons |= {name: reason for (name, _), reason in failed.items()}
    if reason := found.reasons.get(first.name):
        raise RuntimeError(f"{first.name}: {reason}")
    return found


def time_all(candidates: Mapping[K, Candidate], device: torch.device, seconds: float) -> dict[K, Timing]:
    """Time calls of microseconds in turns.

    Raises:
        RuntimeError: One of them failed.
    """
    timings, reasons = take_turns(candidates, device, seconds, short=True)
    if reasons:
        raise RuntimeError("; ".join(f"{key}: {reason}" for key, reason in reasons.items()))
    return timings


def total(label: str, parts: Sequence[Comparison], times: Iterable[int]) -> Comparison:
    """Sum comparisons, each as often as ``times`` says: of what was timed in all of them, round by round."""
    times = tuple(times)

    def weighted(values: Iterable[float]) -> float:
        return sum(n * value for n, value in zip(times, values, strict=True))

    whole = Comparison(label, weighted(part.pairs for part in parts), weighted(part.moved for part in parts))
    for key in parts[0].timings:
        if all(key in part.timings for part in parts):
            rounds = zip(*(part.timings[key].samples for part in parts), strict=False)  # a sample each
            whole.timings[key] = Timing(tuple((weighted(seconds),) for seconds in rounds))
    for name in parts[0].differences:
        whole.differences[name] = max(part.differences.get(name, 0.0) for part in parts)
    return whole


def extra_memory(name: str, case: Case, device: str) -> float:
    """Return the peak of all that is not input or dy (y, gradients, what is saved and scratch), in multiples of x.

    Raises:
        OSError: The system does not report it (anything but Linux, some containers).
    """
    where = torch.device(device)
    implementation = next(one for one in list_implementations(where) if one.name == name)
    call = Call(case, where)
    Call(case.tiny(), where).results(implementation)  # what a first call loads and starts
    extra = rise(partial(call.results, implementation), where)
    return extra / (call.inputs[0].numel() * call.inputs[0].element_size())


def tables_of(name: str, others: Sequence[str], rows: Sequence[Comparison]) -> str:
    """Write the times of ``name``, the ratio of each other one to it, and how far the others are from it."""
    parts = [
        f"`{name}`. GB/s count what the forward pass has to move at least: x once for each route (of a sequence u and "
        "delta), and y. The copy is `copy_` of as many bytes.",
        table(
            (
                *("scan", "pairs", FORWARD, "ns a pair", "GB/s", "forward / copy"),
                *(BACKWARD, "ns a pair", "backward / forward", BOTH, "forward+backward / 3 copies"),
            ),
            (_times(name, row) for row in rows),
        ),
        f"How many times as long as `{name}` the others take:",
        table(
            ("scan", "", *others),
            (
                (row.label, mode, *(_times_as_long(name, row, other, mode) for other in others))
                for row in rows
                for mode in (FORWARD, BOTH)
            ),
        ),
        f"How far they are from `{name}`: the largest difference, relative to the largest number, of y and of each "
        "gradient:",
        table(("scan", *others), ((row.label, *(_difference(row, other) for other in others)) for row in rows)),
    ]
    return "\n\n".join(parts)


def duration(timing: Timing) -> str:
    """Write a time with its spread."""
    unit, scale = ("µs", 1e6) if timing.median < 1e-3 else ("ms", 1e3) if timing.median < 1 else ("s", 1.0)
    return spread([scale * seconds for seconds in timing.samples], f" {unit}") + _mark(timing)


def left_out(name: str, case: Case, device: torch.device) -> str | None:
    """Say in one clause why a case is too large on a GPU for an implementation, if so."""
    if name in BY_TOKEN and device.type == "cuda" and case.tokens > _MOST_LAUNCHED:
        return f"left out, launches for each of {case.tokens} tokens"
    return None


def _mark(timing: Timing) -> str:
    return " launched" if timing.how.startswith("events") else ""


def _why_not_timed(found: Comparison, one: Implementation, call: Call, expected: tuple[Tensor, ...]) -> str | None:
    """Note how far an implementation is from what is expected; return why its time would mean nothing, if so."""
    if reason := left_out(one.name, call.case, call.dy.device):
        return reason
    try:
        results = call.results(one)
    except FAILURES as error:
        return explain(error)
    found.differences[one.name] = max(map(_relative_difference, results, expected))
    # So written that NaN disagrees.
    if not found.differences[one.name] <= _TOLERANCE[call.case.dtype]:
        return f"refused, differs by {found.differences[one.name]:.1g}"
    return None


def _relative_difference(got: Tensor, expected: Tensor) -> float:
    got, expected = got.float(), expected.float()
    return ((got - expected).abs().max() / expected.abs().max()).item()


def _times(name: str, row: Comparison) -> tuple[object, ...]:
    forward, backward, both = (row.timings[name, mode] for mode in (FORWARD, BACKWARD, BOTH))
    copy = row.timings[COPY, FORWARD]
    three_copies = Timing(tuple((3 * seconds,) for seconds in copy.samples))
    return (
        row.label,
        row.pairs,
        duration(forward),
        number(1e9 * forward.median / row.pairs),
        number(row.moved / forward.median / 1e9),
        spread(forward.ratio(copy)),
        duration(backward),
        number(1e9 * backward.median / row.pairs),
        spread(backward.ratio(forward)),
        duration(both),
        spread(both.ratio(three_copies)),
    )


def _times_as_long(name: str, row: Comparison, other: str, mode: str) -> str:
    if timing := row.timings.get((other, mode)):
        return spread(timing.ratio(row.timings[name, mode])) + _mark(timing)
    return row.reasons.get(other, "")


def _difference(row: Comparison, other: str) -> str:
    return f"{row.differences[other]:.1e}" if other in row.differences else row.reasons.get(other, "")
