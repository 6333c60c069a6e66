"""Calls take turns as they should, and their times become the right figures; no time is judged."""

from contextlib import contextmanager
from itertools import count
from types import SimpleNamespace

import pytest
import torch

from mmmsv.analysis.speed import timing
from mmmsv.analysis.speed.timing import Candidate, Timing, explain, quantile, take_turns

CPU = torch.device("cpu")


class Clock:
    """Stands in for the clock: each call takes as long as it says."""

    def __init__(self, monkeypatch):
        self.log = []
        monkeypatch.setattr(timing, "clock", lambda device: lambda call, repeats: repeats * call())
        now = count()
        monkeypatch.setattr(timing.time, "perf_counter", lambda: next(now))

    def candidate(self, name, *seconds):
        """Take the given seconds in turn, then the last of them for ever; an exception is raised."""
        left = list(seconds)

        def call():
            self.log.append(name)
            taken = left.pop(0) if len(left) > 1 else left[0]
            if isinstance(taken, Exception):
                raise taken
            return taken

        return Candidate(call)


@pytest.fixture
def clock(monkeypatch):
    return Clock(monkeypatch)


def test_statistics_of_given_numbers():
    """Ratios are of rounds, not of medians: here the machine became ten times as slow in the third one."""
    mine, its = Timing(((2.0, 4.0), (3.0, 3.0), (40.0, 40.0))), Timing(((1.0,), (1.0,), (10.0,)))
    assert mine.ratio(its) == (3.0, 3.0, 4.0)
    assert its.ratio(its) == (1.0, 1.0, 1.0)
    assert Timing(((1.0,), (2.0,), (3.0,))).ratio(Timing(((4.0,),))) == (0.5,)
    assert mine.samples == (2.0, 4.0, 3.0, 3.0, 40.0, 40.0)
    assert mine.median == 3.5
    assert quantile([float(i) for i in range(101)], 0.95) == 95.0


def test_turns_are_taken(clock):
    candidates = {"a": clock.candidate("a", 9.0, 1.0), "b": clock.candidate("b", 2.0)}
    timings, reasons = take_turns(candidates, CPU, 0, 4)
    assert {key: its.rounds for key, its in timings.items()} == {"a": ((1.0,),) * 4, "b": ((2.0,),) * 4}
    assert reasons == {}
    # Two calls of each to warm up, no time being left for more; then each round begins with another one.
    assert "".join(clock.log) == "aabb" + "ba" + "ab" + "ba" + "ab"


def test_warm_up_goes_on_until_times_settle(clock):
    timings, _ = take_turns({"a": clock.candidate("a", 90.0, 9.0, 3.0, 1.0)}, CPU, 1000, 1)
    assert set(timings["a"].samples) == {1.0}


def test_calls_fill_a_turn(clock):
    timings, _ = take_turns({"a": clock.candidate("a", 0.05), "b": clock.candidate("b", 1e-6)}, CPU, 0, 3)
    assert [len(turn) for turn in timings["a"].rounds] == [4, 4, 4]
    assert [len(turn) for turn in timings["b"].rounds] == [20, 20, 20]


def test_a_sample_of_short_calls_is_their_mean(clock):
    candidates = {"a": clock.candidate("a", 2**-10), "long": clock.candidate("long", 2.0)}
    timings, _ = take_turns(candidates, CPU, 0, 3, short=True)
    assert timings["a"].rounds == ((2**-10,),) * 3
    assert timings["a"].cores > 0
    assert timings["long"].rounds == ((2.0,),)
    assert clock.log.count("long") == 1


def test_a_candidate_runs_in_its_context(monkeypatch):
    entered = []

    class Active:
        __enter__ = lambda self: entered.append(True)  # noqa: E731
        __exit__ = lambda self, *_: entered.pop() and None  # noqa: E731

    seen = []
    take_turns({"a": Candidate(lambda: seen.append(len(entered)), Active)}, CPU, 0, 1, short=True)
    assert set(seen) == {1}
    assert entered == []


def test_short_calls_on_a_gpu_are_replayed(clock, monkeypatch):
    """Where they can be captured; the others are launched, and longer ones as they are."""
    graphs, capturing = [], []

    @contextmanager
    def capture(graph, stream):
        assert stream == "its own"
        graphs.append(graph)
        capturing.append(graph)
        try:
            yield
        finally:
            capturing.clear()

    def refuse():
        if capturing:
            raise RuntimeError("not while capturing\nreally")
        return 0.001

    monkeypatch.setattr(torch.cuda, "CUDAGraph", lambda: SimpleNamespace(replay=lambda: 0.5))
    monkeypatch.setattr(torch.cuda, "graph", capture)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: "its own")
    monkeypatch.setattr(torch.cuda, "synchronize", lambda device: None)
    gpu, candidates = torch.device("cuda"), {"a": clock.candidate("a", 2.0), "b": Candidate(refuse)}
    timings, reasons = take_turns(candidates, gpu, 0, short=True)
    assert reasons == {}
    assert [(its.median, its.how) for its in timings.values()] == [
        (0.5, "graph"),
        (0.001, "events, no graph: not while capturing"),
    ]
    assert clock.log == ["a", "a"]  # once before it is captured, and once to be
    assert len(graphs) == 2
    timings, _ = take_turns({"a": candidates["a"]}, gpu, 0)
    assert (timings["a"].median, timings["a"].how, len(graphs)) == (2.0, "calls", 2)


def test_one_that_fails_does_not_stop_the_others(clock):
    candidates = {
        "late": clock.candidate("late", 1.0, 1.0, torch.cuda.OutOfMemoryError("CUDA out of memory. Tried")),
        "at once": clock.candidate("at once", ValueError("too small\nreally")),
        # torchvision's vision transformers raise one of these for a size that they were not made for.
        "asserts": clock.candidate("asserts", AssertionError("Wrong image height!")),
        "good": clock.candidate("good", 1.0),
    }
    timings, reasons = take_turns(candidates, CPU, 0)
    assert {key: its.rounds for key, its in timings.items()} == {"good": ((1.0,),) * 3}
    assert reasons == {
        "late": "out of memory",
        "at once": "ValueError: too small",
        "asserts": "AssertionError: Wrong image height!",
    }


def test_what_went_wrong_is_explained_in_a_line():
    no_memory = "[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried"
    assert explain(RuntimeError(no_memory)) == explain(MemoryError()) == "out of memory"
    assert explain(RuntimeError("a | b")) == "RuntimeError: a / b"
    assert len(explain(RuntimeError("a" * 1000))) == 160
