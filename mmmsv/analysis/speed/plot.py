"""Draw latency, time per pixel and memory over the size of the image."""

from collections.abc import Callable, Sequence
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

from .groups import Row
from .models import short_name

# Of Okabe and Ito, which colour-blind readers can distinguish; without colours the markers do.
_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
_MARKERS = "osD^vPX"
# Ticks that are closer than this factor of pixels share a label.
_CLOSE = 1.2


def curves(rows: Sequence[Row], path: Path, machine: str) -> None:
    """Draw the rows of one batch size; a line of panels for each kind.

    Args:
        rows: Of several sizes.
        path: Of the PNG.
        machine: For the title.
    """
    kinds = dict.fromkeys(row.step.kind for row in rows)
    with_memory = any(row.peak for row in rows)
    panels: list[tuple[str, Callable[[Row], float | None], bool]] = [
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
            _panel(axis, of_kind, value, logarithmic)
            axis.set_title(f"{kind}: {title}", fontsize=10)
    handles, labels = axes[0][0].get_legend_handles_labels()
    step = rows[0].step
    what = f"batch {step.batch}, {step.dtype}{', maps of four stages' if step.maps else ''}"
    figure.suptitle(f"{machine}, {what}", fontsize=10)
    figure.legend(handles, labels, loc="outside lower center", ncols=len(labels), fontsize=10, frameon=False)
    figure.savefig(path)


def _panel(axis: Axes, rows: Sequence[Row], value: Callable[[Row], float | None], logarithmic: bool) -> None:
    for i, name in enumerate(dict.fromkeys(row.model for row in rows)):
        points = sorted(
            (row.step.pixels / row.step.batch, value(row)) for row in rows if row.model == name and value(row)
        )
        style = {"color": _COLOURS[i % len(_COLOURS)], "marker": _MARKERS[i % len(_MARKERS)]}
        axis.plot(*(zip(*points, strict=True) if points else ([], [])), label=short_name(name), markersize=5, **style)
    axis.set_xscale("log")
    _label_sizes(axis, rows)
    if logarithmic:
        axis.set_yscale("log")
        axis.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axis.yaxis.set_major_formatter(FuncFormatter(lambda y, _: f"{y:g}"))
        axis.yaxis.set_minor_locator(NullLocator())
    else:
        axis.set_ylim(bottom=0)
    axis.grid(True, which="major", alpha=0.3)
    axis.set_xlabel("image, H x W", fontsize=9)
    axis.tick_params(labelsize=8)


def _label_sizes(axis: Axes, rows: Sequence[Row]) -> None:
    """Put a tick at each size; those that would overlap share one, a line for each."""
    ticks: list[tuple[float, list[str]]] = []
    sizes = {(row.step.height * row.step.width, row.step.height, row.step.width) for row in rows}
    for pixels, height, width in sorted(sizes):
        label = str(height) if height == width else f"{height} x {width}"
        if ticks and pixels < _CLOSE * ticks[-1][0]:
            ticks[-1][1].append(label)
        else:
            ticks.append((pixels, [label]))
    axis.set_xticks([pixels for pixels, _ in ticks], ["\n".join(labels) for _, labels in ticks])
    axis.xaxis.set_minor_locator(NullLocator())
