"""Measures a group: one case with all models in turns, each in its fastest variant."""

import gc
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, field
from itertools import product

import torch

from .memory import child_process
from .models import short_name
from .timing import FAILURES, Turns, explain, quantile, take_turns
from .workload import LAYOUTS, MODES, Case, Peak, Variant, Workload, peak_in_child

BEST = "best"
# Trials of the variants take this part of what the rounds of a group may take.
_TRIAL = 0.1
_TRIAL_ROUNDS = 2
# A 95th percentile of fewer calls would be its slowest one.
_FEWEST_FOR_P95 = 20

Tell = Callable[[str], None]


@dataclass(frozen=True)
class Settings:
    """What all groups share.

    Args:
        device: That everything runs on.
        layout: One of ``LAYOUTS``, or ``'best'``: for each model the faster one.
        mode: One of ``MODES``, or ``'best'``.
        seconds: No new round of a group begins after this long; there are three at least.
        memory: Whether peak memory is measured.
    """

    device: torch.device
    layout: str
    mode: str
    seconds: float
    memory: bool

    @property
    def variants(self) -> list[Variant]:
        """All that a model may choose from."""
        layouts = tuple(LAYOUTS) if self.layout == BEST else (self.layout,)
        modes = MODES if self.mode == BEST else (self.mode,)
        return [Variant(layout, mode) for mode, layout in product(modes, layouts)]


@dataclass
class Row:
    """What was measured of a model in a case.

    Args:
        model: Its full name.
        case: What it did.
        variant: How; that of its fastest trial.
        trials: Median seconds of each variant that was tried, or why it did not run.
        gain_of_compiling: Eager / compiled, each in its faster layout, round by round of the trials.
        parameters: How many it has.
        turns: Seconds of all calls, with nothing else in the turn.
        ratio: How many times as long as the first model of the group, round by round.
        peak: Memory.
        reason: Why there are no times.
        no_peak: Why there is no peak, if it was asked for.
    """

    model: str
    case: Case
    variant: Variant | None = None
    trials: dict[Variant, float | str] = field(default_factory=dict)
    gain_of_compiling: tuple[float, ...] = ()
    parameters: int | None = None
    turns: Turns | None = None
    ratio: tuple[float, ...] = ()
    peak: Peak | None = None
    reason: str | None = None
    no_peak: str | None = None

    @property
    def images_per_second(self) -> float:
        """How many images a second at the median."""
        return self.case.batch / self.turns.median

    @property
    def p95(self) -> float | None:
        """Seconds that 95 % of the calls do not exceed; None of so few calls that it would be a guess."""
        return quantile(self.turns.calls, 0.95) if len(self.turns.calls) >= _FEWEST_FOR_P95 else None


def measure_group(names: Sequence[str], case: Case, settings: Settings, tell: Tell) -> list[Row]:
    """Measure all models in a case; a row each, in their order."""
    rows = {name: Row(name, case) for name in names}
    _time(rows, settings, tell)
    _clean_up(settings)
    if settings.memory and settings.device.type == "cpu":
        for name, row in rows.items():
            if row.turns:
                tell(f"{short_name(name)}: memory")
                _measure_in_child(row, settings.device)
    return list(rows.values())


def choose(trials: Mapping[Variant, float | str]) -> Variant | None:
    """Return the variant that took the fewest seconds; none if all failed."""
    ran = {variant: seconds for variant, seconds in trials.items() if not isinstance(seconds, str)}
    return min(ran, key=ran.get) if ran else None


def _in_its_fastest_variant(row: Row, settings: Settings, tell: Tell) -> Workload | None:
    """Try the variants in turns, note them in the row, and return the fastest."""
    workloads = {}
    for variant in settings.variants:
        try:
            workloads[variant] = Workload(row.model, row.case, variant, settings.device)
        except FAILURES as error:
            row.trials[variant] = explain(error)
    if len(settings.variants) == 1:
        row.variant = next(iter(workloads), None)
    else:
        turns, reasons = take_turns(
            workloads,
            settings.device,
            _TRIAL * settings.seconds,
            _TRIAL_ROUNDS,
            lambda variant, text: tell(f"{short_name(row.model)}, {variant}: {text}"),
        )
        row.trials |= {variant: its.median for variant, its in turns.items()} | reasons
        row.variant = choose(row.trials)
        row.gain_of_compiling = _gain_of_compiling(turns)
    if row.variant is None:
        row.reason = next(iter(row.trials.values()))
        return None
    row.parameters = workloads[row.variant].parameters
    return workloads[row.variant]


def _gain_of_compiling(turns: Mapping[Variant, Turns]) -> tuple[float, ...]:
    """Return eager / compiled, each in its faster layout, round by round; nothing where one of them did not run."""
    eager, compiled = (
        min((its for variant, its in turns.items() if variant.mode == mode), key=lambda its: its.median, default=None)
        for mode in MODES
    )
    return eager.ratio(compiled) if eager and compiled else ()


def _time(rows: Mapping[str, Row], settings: Settings, tell: Tell) -> None:
    """Note the times of all models in their rows, by name, and of those on a GPU the memory."""
    workloads = {}
    for name, row in rows.items():
        if workload := _in_its_fastest_variant(row, settings, tell):
            workloads[name] = workload
    if settings.memory and settings.device.type == "cuda":
        for name, workload in workloads.items():
            tell(f"{short_name(name)}: memory")
            _measure_here(rows[name], workload)
    turns, reasons = take_turns(
        workloads, settings.device, settings.seconds, tell=lambda name, text: tell(f"{short_name(name)}: {text}")
    )
    first = turns.get(next(iter(rows)))
    for name, its in turns.items():
        rows[name].turns = its
        rows[name].ratio = its.ratio(first) if first else ()
    for name, reason in reasons.items():
        rows[name].reason = reason


def _measure_here(row: Row, workload: Workload) -> None:
    try:
        workload()
        row.peak = workload.peak()
    except FAILURES as error:
        row.no_peak = explain(error)


def _measure_in_child(row: Row, device: torch.device) -> None:
    with child_process() as child:
        try:
            arguments = (row.model, row.case, row.variant, device.type, torch.get_num_threads())
            row.peak = child.submit(peak_in_child, *arguments).result()
        except BrokenProcessPool:
            row.no_peak = "the process that measured it was killed, as a rule for want of memory"
        except OSError as error:
            row.no_peak = f"the system does not tell: {explain(error)}"
        except FAILURES as error:
            row.no_peak = explain(error)


def _clean_up(settings: Settings) -> None:
    """Give back what the models of a group have left, in memory and in torch.compile's caches."""
    if settings.mode != "eager":
        torch.compiler.reset()
    gc.collect()
    if settings.device.type == "cuda":
        torch.cuda.empty_cache()
