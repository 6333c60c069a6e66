"""Write the measurements of models as JSON and as Markdown."""

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import torch
import torchvision

from mmmsv import __version__
from mmmsv.whole_files import write_whole

from . import machine
from .groups import Row, Settings
from .markdown import number, spread, table
from .models import short_name
from .plot import curves
from .timing import quantile

_MIB = 1024**2
LEGEND = (
    "Figures for one size in one table were measured in turns, round by round, so that whatever else the machine did "
    "affected all equally: ratios suffer less from it than times, and their spread says how much. *latency* is that of "
    "a batch: the median of all calls, with the 10th and the 90th percentile in brackets; *p95* is its 95th, of 20 "
    "*calls* or more. *images/s* are batch / median. *time / first* is how many times as long as the first model it "
    "takes: the median of the ratios of the rounds, with the 10th and the 90th percentile. *eager / compiled*, where "
    "both were tried, is how many times as fast compiling made a model, in turns of that model alone. *peak* is all "
    "memory that the model needs, *beyond weights* is that without parameters and buffers. Weights are random."
)
STEPS = {
    "inference": "Evaluation mode, `torch.inference_mode()`.",
    "training": "A step: forward, {loss}, backward, AdamW as torch makes it by default, `zero_grad`; no data loading, "
    "no loss scaling.",
}


def conditions(settings: Settings, dtype: str) -> dict[str, str]:
    """Return what the figures depend on, by its name.

    Raises:
        ValueError: The environment asks for a scan backend that does not exist.
        RuntimeError: It asks for one that cannot run here.
    """
    gpu = {}
    if settings.device.type == "cuda":
        gpu = {
            "cuDNN": f"{torch.backends.cudnn.version()}, benchmark {_on(torch.backends.cudnn.benchmark)}",
            "TF32": f"convolutions {_on(torch.backends.cudnn.allow_tf32)}, "
            f"matrix products {_on(torch.backends.cuda.matmul.allow_tf32)}",
        }
    return {
        **machine.facts(settings.device),
        "mmmsv": __version__,
        "torchvision": torchvision.__version__,
        "Triton": _triton_version(),
        **gpu,
        "scan backend": machine.scan_backend(settings.device),
        **machine.choices(settings.device),
        "dtype": dtype if dtype == "float32" else f"autocast to {dtype}; weights and images are float32",
        "layout": settings.layout,
        "mode": settings.mode,
        "seconds a group": f"{settings.seconds:g}, three rounds at least",
    }


def write(folder: Path, facts: Mapping[str, str], rows: Sequence[Row]) -> None:
    """Write ``throughput.json`` and ``throughput.md``, and for each batch of which there are several sizes a plot."""
    write_whole(folder / "throughput.json", (json.dumps(as_json(facts, rows), indent=1) + "\n").encode())
    write_whole(folder / "throughput.md", as_markdown(facts, rows).encode())
    for batch in dict.fromkeys(row.step.batch for row in rows):
        of_batch = [row for row in rows if row.step.batch == batch]
        if len({row.step.size for row in of_batch}) > 1:
            curves(of_batch, folder / f"throughput_batch{batch}.png", _machine(facts))


def as_json(facts: Mapping[str, str], rows: Sequence[Row]) -> dict[str, object]:
    """Return all that was measured, with every sample, as it goes into a file."""
    return {"facts": dict(facts), "rows": [_row_as_json(row) for row in rows]}


def as_markdown(facts: Mapping[str, str], rows: Sequence[Row]) -> str:
    """Write the tables of all groups, and what they depend on."""
    sections = [f"# Speed of models on {_machine(facts)}", table(("", ""), facts.items()), LEGEND]
    for kind in dict.fromkeys(row.step.kind for row in rows):
        of_kind = [row for row in rows if row.step.kind == kind]
        loss = "gradients of the four maps" if of_kind[0].step.maps else "cross-entropy"
        what = " Models return the maps of their four stages." if of_kind[0].step.maps else ""
        sections.append(f"## {kind.capitalize()}\n\n{STEPS[kind].format(loss=loss)}{what}")
        for batch in dict.fromkeys(row.step.batch for row in of_kind):
            rows_of_batch = [row for row in of_kind if row.step.batch == batch]
            sections.append(f"### {kind.capitalize()}, batch {batch}\n\n{rows_table(rows_of_batch)}")
    return "\n\n".join(sections) + "\n"


def rows_table(rows: Sequence[Row]) -> str:
    """Lay out rows, and say under them what failed."""
    measured = {
        name: cell for name, cell in _MEASURED.items() if name != _GAIN or any(row.gain_of_compiling for row in rows)
    }

    def cells(row: Row) -> tuple[str, ...]:
        about = (cell(row) or "-" for cell in _ABOUT.values())
        if row.timing is None:
            return (*about, "failed", *("-",) * (len(measured) - 1))
        return (*about, *(cell(row) or "-" for cell in measured.values()))

    notes = [
        f"{short_name(row.model)}, {row.step.size}: {what}, {reason}."
        for row in rows
        for what, reason in (("failed", row.reason), ("memory not measured", row.no_peak))
        if reason
    ]
    return "\n\n".join((table((*_ABOUT, *measured), map(cells, rows)), *notes))


def _ratio(values: Sequence[float]) -> str | None:
    if not values:
        return None
    return "1" if set(values) == {1.0} else spread(values)  # the first model itself


# The columns of a table, and the cell that each makes of a row: None, if there is nothing to say.
_GAIN = "eager / compiled"
_ABOUT: dict[str, Callable[[Row], str | None]] = {
    "H x W": lambda row: row.step.size,
    "model": lambda row: short_name(row.model),
    "parameters, M": lambda row: f"{row.parameters / 1e6:.2f}" if row.parameters else None,
    "layout, mode": lambda row: str(row.variant) if row.variant else None,
}
_MEASURED: dict[str, Callable[[Row], str | None]] = {
    "images/s": lambda row: number(row.images_per_second) if row.images_per_second else None,
    "calls": lambda row: str(len(row.timing.samples)) if row.timing else None,
    "latency, ms": lambda row: spread([1e3 * seconds for seconds in row.timing.samples]) if row.timing else None,
    "p95, ms": lambda row: number(1e3 * row.p95) if row.p95 else None,
    "time / first": lambda row: _ratio(row.ratio),
    _GAIN: lambda row: _ratio(row.gain_of_compiling),
    "peak, MiB": lambda row: f"{row.peak.whole / _MIB:.0f}" if row.peak else None,
    "beyond weights, MiB": lambda row: f"{row.peak.beyond_weights / _MIB:.0f}" if row.peak else None,
}


def _row_as_json(row: Row) -> dict[str, object]:
    step = row.step
    found: dict[str, object] = {
        "model": row.model,
        "kind": step.kind,
        "height": step.height,
        "width": step.width,
        "batch": step.batch,
        "dtype": step.dtype,
        "maps": step.maps,
        **(row.variant._asdict() if row.variant else {"layout": None, "mode": None}),
        "parameters": row.parameters,
        "trials": [{**variant._asdict(), "result": result} for variant, result in row.trials.items()],
        "reason": row.reason,
        "no_peak": row.no_peak,
    }
    if row.timing:
        found |= {
            "images_per_second": row.images_per_second,
            "median_seconds": row.timing.median,
            "p95_seconds": row.p95,
            "seconds": row.timing.rounds,
        }
    for name, ratio in (("time_ratio", row.ratio), ("eager_over_compiled", row.gain_of_compiling)):
        if ratio:
            quantiles = (("median", 0.5), ("p10", 0.1), ("p90", 0.9))
            found |= {f"{name}_{which}": quantile(ratio, q) for which, q in quantiles}
    if row.peak:
        found |= {"peak_bytes": row.peak.whole, "peak_bytes_beyond_weights": row.peak.beyond_weights}
    return found


def _machine(facts: Mapping[str, str]) -> str:
    return facts.get("GPU", facts["processor"])


def _on(flag: object) -> str:
    return "on" if flag else "off"


def _triton_version() -> str:
    try:
        import triton
    except ImportError:
        return "none"
    return triton.__version__
