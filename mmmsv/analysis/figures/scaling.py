"""Draw what models cost, and how accurate they are, over the size of the image, as Figure 6 of VMamba does."""

from collections.abc import Callable, Sequence

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray

from ..scaling import Point
from .curves import draw_curves
from .style import new_figure, styled

_SHORT = 24  # letters of names of which the legend has four in a line
# Title, value of a point, and whether the axis is logarithmic.
_PANELS: tuple[tuple[str, Callable[[Point], float | None], bool], ...] = (
    ("multiply-adds, GMACs", lambda point: point.macs and point.macs / 1e9, True),
    ("multiply-adds per pixel, kMACs", lambda point: point.macs and point.macs / 1e3 / point.size**2, False),
    ("latency of one image, ms", lambda point: point.latency and 1e3 * point.latency, True),
    ("peak memory, MiB", lambda point: point.peak and point.peak / 1024**2, True),
    ("top-1 accuracy, %", lambda point: point.accuracy, False),
)


@styled()
def draw(points: Sequence[Point], what: str) -> Figure:
    """Draw a panel for each of multiply-adds, latency, memory and accuracy that was measured.

    Args:
        points: Of all models; each keeps its colour in all panels.
        what: Conditions, for the title.
    """
    panels = [panel for panel in _PANELS if any(panel[1](point) is not None for point in points)]
    columns = min(len(panels), 2)
    lines = -(-len(panels) // columns)
    figure = new_figure(
        f"Cost of one image over its size: {what}", 3.3 * lines + 0.9, width=9.0 if columns == 2 else 6.0
    )
    axes = figure.subplots(lines, columns, squeeze=False).flatten()
    sizes = [(point.size, point.size) for point in points]
    for axis, (title, value, logarithmic) in zip(axes, panels, strict=False):
        curves = {
            name: [((p.size, p.size), found) for p in points if p.model == name and (found := value(p)) is not None]
            for name in dict.fromkeys(point.model for point in points)
        }
        draw_curves(axis, curves, sizes, logarithmic)
        axis.set_title(title)
    for axis in axes[len(panels) :]:
        axis.set_axis_off()
    handles, labels = axes[0].get_legend_handles_labels()
    beside = 4 if max(map(len, labels)) <= _SHORT else 2
    figure.legend(handles, labels, loc="outside lower center", ncols=min(len(labels), beside), frameon=False)
    return figure


def point_arrays(points: Sequence[Point]) -> dict[str, NDArray]:
    """Name the arrays of the points, for the ``.npz``: one value for each, NaN where there is none."""
    numbers = {
        "macs": [point.macs for point in points],
        "latency_seconds": [point.latency for point in points],
        "peak_bytes": [point.peak for point in points],
        "accuracy_per_cent": [point.accuracy for point in points],
    }
    return {
        "model": np.array([point.model for point in points]),
        "size": np.array([point.size for point in points]),
        **{name: np.array(values, dtype=float) for name, values in numbers.items()},
        "failure": np.array([point.failure or "" for point in points]),
    }
