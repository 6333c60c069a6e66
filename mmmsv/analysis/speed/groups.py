"""Measure the models of a group: they run the same step in turns, each in its fastest variant."""

import gc
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import product

import torch

from .memory import child_process, measure_in
from .models import short_name
from .timing import FAILURES, Candidate, Timing, explain, quantile, take_turns
from .workload import LAYOUTS, MODES, Peak, Step, Variant, Workload, peak_in_child

BEST = "best"
# Trials of the variants take this part of what the rounds of a group may take.
_TRIAL = 0.1
_TRIAL_ROUNDS = 2
# A 95th percentile of fewer calls would be its slowest one.
_FEWEST_FOR_P95 = 20

Show = Callable[[str], None]


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
    """What was measured of a model.

    Args:
        model: Its full name.
        step: What it did.
        variant: How; that of its fastest trial.
        trials: Median seconds of each variant that was tried, or why it did not run.
        gain_of_compiling: Eager / compiled, each in its faster layout, round by round of the trials.
        parameters: How many it has.
        timing: Seconds of all calls.
        ratio: How many times as long as the first model of the group, round by round.
        peak: Memory.
        reason: Why there are no times.
        no_peak: Why there is no peak, if it was asked for.
    """

    model: str
    step: Step
    variant: Variant | None = None
    trials: dict[Variant, float | str] = field(default_factory=dict)
    gain_of_compiling: tuple[float, ...] = ()
    parameters: int | None = None
    timing: Timing | None = None
    ratio: tuple[float, ...] = ()
    peak: Peak | None = None
    reason: str | None = None
    no_peak: str | None = None

    @property
    def images_per_second(self) -> float | None:
        """How many images a second at the median."""
        return self.step.batch / self.timing.median if self.timing else None

    @property
    def p95(self) -> float | None:
        """Seconds that 95 % of the calls do not exceed; None of so few calls that it would be a guess."""
        samples = self.timing.samples if self.timing else ()
        return quantile(samples, 0.95) if len(samples) >= _FEWEST_FOR_P95 else None


def measure_group(names: Sequence[str], step: Step, settings: Settings, show: Show) -> list[Row]:
    """Measure all models in a step; return a row for each, in their order."""
    rows = {name: Row(name, step) for name in names}
    _time(rows, settings, show)
    _clean_up(settings)
    if settings.memory and settings.device.type == "cpu":
        for name, row in rows.items():
            if row.timing:
                show(f"{short_name(name)}: memory")
                with child_process() as child:
                    arguments = (name, step, row.variant, settings.device.type, torch.get_num_threads())
                    _note_peak(row, measure_in(child, peak_in_child, *arguments))
    return list(rows.values())


def _in_its_fastest_variant(row: Row, settings: Settings, show: Show) -> Workload | None:
    """Try the variants in turns, note them in the row, and return the fastest."""
    workloads: dict[Variant, Workload] = {}
    for variant in settings.variants:
        try:
            workloads[variant] = Workload(row.model, row.step, variant, settings.device)
        except FAILURES as error:
            row.trials[variant] = explain(error)
    if len(settings.variants) == 1:
        row.variant = next(iter(workloads), None)
    else:
        timings, reasons = take_turns(
            {variant: Candidate(workload) for variant, workload in workloads.items()},
            settings.device,
            _TRIAL * settings.seconds,
            _TRIAL_ROUNDS,
            show=lambda variant, text: show(f"{short_name(row.model)}, {variant}: {text}"),
        )
        row.trials |= {variant: timing.median for variant, timing in timings.items()} | reasons
        row.variant = _fastest(timings)
        eager, compiled = (_fastest({v: timing for v, timing in timings.items() if v.mode == mode}) for mode in MODES)
        if eager and compiled:
            row.gain_of_compiling = timings[eager].ratio(timings[compiled])
    if row.variant is None:
        row.reason = next(reason for reason in row.trials.values() if isinstance(reason, str))
        return None
    row.parameters = workloads[row.variant].parameters
    return workloads[row.variant]


def _fastest(timings: Mapping[Variant, Timing]) -> Variant | None:
    return min(timings, key=lambda variant: timings[variant].median, default=None)


def _time(rows: Mapping[str, Row], settings: Settings, show: Show) -> None:
    """Note the times of all models in their rows, by name, and of those on a GPU the memory."""
    workloads: dict[str, Workload] = {}
    for name, row in rows.items():
        if workload := _in_its_fastest_variant(row, settings, show):
            workloads[name] = workload
    if settings.memory and settings.device.type == "cuda":
        for name, workload in workloads.items():
            show(f"{short_name(name)}: memory")
            _note_peak(rows[name], _peak_here(workload))
    timings, reasons = take_turns(
        {name: Candidate(workload) for name, workload in workloads.items()},
        settings.device,
        settings.seconds,
        show=lambda name, text: show(f"{short_name(name)}: {text}"),
    )
    first = timings.get(next(iter(rows)))
    for name, timing in timings.items():
        rows[name].timing = timing
        rows[name].ratio = timing.ratio(first) if first else ()
    for name, reason in reasons.items():
        rows[name].reason = reason


def _peak_here(workload: Workload) -> Peak | str:
    try:
        workload()
        return workload.peak()
    except FAILURES as error:
        return explain(error)


def _note_peak(row: Row, found: Peak | str) -> None:
    if isinstance(found, str):
        row.no_peak = found
    else:
        row.peak = found


def _clean_up(settings: Settings) -> None:
    """Give back what the models of a group have left, in memory and in torch.compile's caches."""
    if settings.mode != "eager":
        torch.compiler.reset()
    gc.collect()
    if settings.device.type == "cuda":
        torch.cuda.empty_cache()
