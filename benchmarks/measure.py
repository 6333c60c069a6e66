"""Measures one case with every peer: agreement first, then time."""

from collections.abc import Hashable, Iterable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import TypeVar

import torch
from cases import Case, Scan, output_gradient
from peers import Peer
from torch import Tensor

from mmmsv.analysis.speed.timing import Candidate, Timing, interleave

FORWARD, BACKWARD, BOTH = "forward", "backward", "forward+backward"
COPY = "copy"

# A peer of which one call would take longer than this is left out.
_LONGEST_CALL = 20.0
# Peers that differ by more than this, relative to the largest number of a result, do not compute the same function.
_TOLERANCE = {torch.float32: 1e-3, torch.float16: 2e-2, torch.bfloat16: 1e-1}

Key = tuple[str, str]  # a peer's name, or COPY, and what of it is timed
K = TypeVar("K", bound=Hashable)


@dataclass
class Row:
    """What was measured of a case, or of several together.

    Args:
        label: For the tables.
        pairs: Tokens times channels, of all routes.
        moved: Bytes that any implementation reads and writes in the forward pass.
        timings: By peer and what was timed.
        differences: Largest difference of a peer from the first one, relative to the largest number of the result;
            over y and all gradients.
        reasons: Why a peer is not in ``timings``.
    """

    label: str
    pairs: int
    moved: int
    timings: dict[Key, Timing] = field(default_factory=dict)
    differences: dict[str, float] = field(default_factory=dict)
    reasons: dict[str, str] = field(default_factory=dict)


@dataclass
class Bench:
    """What all tables share.

    Args:
        device: That everything runs on.
        peers: Those that can run there, the one that the others are compared with first.
        seconds: How long the rounds of a case may take.
        per_token: Seconds a token that a peer took with so large a state, to tell which cases would take too long.
    """

    device: torch.device
    peers: list[Peer]
    seconds: float
    per_token: dict[tuple[str, int], float] = field(default_factory=dict)

    @property
    def first(self) -> Peer:
        return self.peers[0]

    @property
    def names(self) -> list[str]:
        return [peer.name for peer in self.peers]

    def too_slow(self, peer: Peer, case: Case) -> str | None:
        """Say in one clause that a peer would take too long, if so; known once it ran with as large a state."""
        seconds = self.per_token.get((peer.name, case.vector), 0.0) * case.length
        return f"left out, about {seconds:.0f} s a call" if seconds > _LONGEST_CALL else None

    def interleave(self, candidates: dict[K, Candidate]) -> dict[K, Timing]:
        return interleave(candidates, self.device, self.seconds)


def measure(bench: Bench, case: Case) -> Row:
    """Check each peer against the first one, then time them, and a plain copy, in turns."""
    scan = case.scan(bench.device)
    row = Row(str(case), case.pairs, case.moved * scan.tensors[0].element_size())
    candidates: dict[Key, Candidate] = {(COPY, FORWARD): _copy(case.moved, scan.tensors[0])}
    dy = output_gradient(scan)
    expected = results(bench.first, scan, dy)
    for peer in bench.peers:
        if reason := bench.too_slow(peer, case) or _disagrees(row, peer, scan, dy, expected):
            row.reasons[peer.name] = reason
            continue
        modes = (FORWARD, BACKWARD, BOTH) if peer is bench.first else (FORWARD, BOTH)
        candidates |= {(peer.name, mode): candidate(peer, scan, dy, mode) for mode in modes}
    row.timings = bench.interleave(candidates)
    for name, mode in row.timings:
        if mode == BOTH:
            bench.per_token[name, case.vector] = row.timings[name, mode].median / case.length
    return row


def results(peer: Peer, scan: Scan, dy: Tensor) -> tuple[Tensor, ...]:
    """Return y and the gradients of all tensors."""
    with peer.active():
        return _both(peer, scan, dy)


def candidate(peer: Peer, scan: Scan, dy: Tensor, mode: str) -> Candidate:
    """Make a candidate of a peer: its forward pass without autograd, its backward pass on a kept graph, or both."""
    if mode == FORWARD:
        return Candidate(torch.no_grad()(partial(peer.run, scan)), peer.active)
    if mode == BOTH:
        return Candidate(partial(_both, peer, scan, dy), peer.active)
    with peer.active():
        y = peer.run(scan)
    return Candidate(partial(torch.autograd.grad, y, scan.tensors, dy, retain_graph=True), peer.active)


def total(label: str, rows: Sequence[Row], times: Iterable[int]) -> Row:
    """Sum rows, each so many times: of what was timed in all of them, round by round."""
    times = tuple(times)

    def weighted(values: Iterable[float]) -> float:
        return sum(n * value for n, value in zip(times, values, strict=True))

    whole = Row(label, int(weighted(row.pairs for row in rows)), int(weighted(row.moved for row in rows)))
    for key in rows[0].timings:
        if all(key in row.timings for row in rows):
            rounds = zip(*(row.timings[key].samples for row in rows), strict=False)
            whole.timings[key] = Timing(tuple(map(weighted, rounds)), rows[0].timings[key].cores)
    for name in rows[0].differences:
        whole.differences[name] = max(row.differences.get(name, 0.0) for row in rows)
    return whole


def _both(peer: Peer, scan: Scan, dy: Tensor) -> tuple[Tensor, ...]:
    y = peer.run(scan)
    return (y.detach(), *torch.autograd.grad(y, scan.tensors, dy))


def _copy(moved: int, like: Tensor) -> Candidate:
    """Copy half as many numbers as ``moved``: so many are read, and as many written."""
    source = like.new_ones(moved // 2)
    return Candidate(partial(torch.empty_like(source).copy_, source))


def _disagrees(row: Row, peer: Peer, scan: Scan, dy: Tensor, expected: tuple[Tensor, ...]) -> str | None:
    """Note how far a peer is from what is expected; say why its time means nothing, if so."""
    try:
        got = results(peer, scan, dy)
    except torch.OutOfMemoryError:
        return "out of memory"
    difference = max(_difference(mine, its) for mine, its in zip(got, expected, strict=True))
    row.differences[peer.name] = difference
    # So written that NaN disagrees.
    if not difference <= _TOLERANCE[scan.tensors[0].dtype]:
        return f"refused, differs by {difference:.1g}"
    return None


def _difference(got: Tensor, expected: Tensor) -> float:
    got, expected = got.float(), expected.float()
    return ((got - expected).abs().max() / expected.abs().max()).item()
