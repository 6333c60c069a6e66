"""Draw latency, time per pixel and memory over the size of the image."""

from collections.abc import Callable, Sequence
from pathlib import Path

from matplotlib.figure import Figure

from ..figures.curves import draw_curves
from .groups import Row
from .models import short_name

Value = Callable[[Row], float | None]


def curves(rows: Sequence[Row], path: Path, machine: str) -> None:
    """Draw the rows of one batch size; a line of panels for each kind.

    Args:
        rows: Of several sizes.
        path: Of the PNG.
        machine: For the title.
    """
    kinds = dict.fromkeys(row.step.kind for row in rows)
    with_memory = any(row.peak for row in rows)
    panels: list[tuple[str, Value, bool]] = [
        ("latency of a batch, ms", lambda row: 1e3 * row.timing.median if row.timing else None, True),
        ("time per pixel, ns", lambda row: 1e9 * row.timing.median / row.step.pixels if row.timing else None, False),
    ]
    if with_memory:
        panels.append(("peak memory, MiB", lambda row: row.peak.whole / 1024**2 if row.peak else None, True))
    figure = Figure(figsize=(4.6 * len(panels), 3.7 * len(kinds) + 0.5), dpi=150, layout="constrained")
    axes = figure.subplots(len(kinds), len(panels), squeeze=False)
    for line, kind in zip(axes, kinds, strict=True):
        of_kind = [row for row in rows if row.step.kind == kind]
        for axis, (title, value, logarithmic) in zip(line, panels, strict=True):
            sizes = [(row.step.height, row.step.width) for row in of_kind]
            draw_curves(axis, _curves(of_kind, value), sizes, logarithmic)
            axis.set_title(f"{kind}: {title}", fontsize=10)
    handles, labels = axes[0][0].get_legend_handles_labels()
    step = rows[0].step
    what = f"batch {step.batch}, {step.dtype}{', maps of four stages' if step.maps else ''}"
    figure.suptitle(f"{machine}, {what}", fontsize=10)
    figure.legend(handles, labels, loc="outside lower center", ncols=len(labels), fontsize=10, frameon=False)
    figure.savefig(path)


def _curves(rows: Sequence[Row], value: Value) -> dict[str, list[tuple[tuple[int, int], float]]]:
    """Return the values of each model, by its name; none where there is nothing to show."""
    points: dict[str, list[tuple[tuple[int, int], float]]] = {short_name(row.model): [] for row in rows}
    for row in rows:
        if found := value(row):
            points[short_name(row.model)].append(((row.step.height, row.step.width), found))
    return points
