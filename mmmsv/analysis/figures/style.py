"""What all figures share: widths, fonts, colour maps, panels with maps."""

from collections.abc import Sequence
from functools import partial
from math import ceil
from textwrap import fill

import numpy as np
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.figure import Figure, SubFigure
from matplotlib.image import AxesImage
from numpy.typing import NDArray

# Inches: with 9 points the text is legible where a page is 900 pixels wide.
WIDTH = 9.0
DPI = 130
TITLE = 9.5
_SIZES = {"font.size": 9, "axes.titlesize": 9, "figure.titlesize": 10.5, "axes.labelsize": 9, "legend.fontsize": 9}
# Of Okabe and Ito, which colour-blind readers can distinguish; without colours the markers do.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
MARKERS = "osD^vPX"
styled = partial(rc_context, {**_SIZES, "svg.hashsalt": "mmmsv"})  # around each function that draws
# Ordered values, and two kinds; both are legible for colour-blind eyes and in grey.
COLOUR_MAP = "viridis"
# Where there is no value, as on tokens that a route does not bring to the query.
NO_VALUE = "#d9d9d9"
QUERY = "#ff4d00"


def new_figure(title: str, height: float, width: float = WIDTH) -> Figure:
    """Make an empty figure with a title; sizes in inches."""
    figure = Figure(figsize=(width, height), dpi=DPI, layout="constrained")
    figure.suptitle(title, parse_math=False)  # names of files may have dollars
    return figure


def new_panels(title: str, number: int, ratio: float, text: float) -> tuple[Figure, list[Axes]]:
    """Make a figure of equal panels, four in a line at most.

    Args:
        title: Of the figure.
        number: Of panels.
        ratio: Height of a panel for a width of 1.
        text: Inches that the text above and below a panel takes.
    """
    lines = ceil(number / 4)
    columns = ceil(number / lines)
    height = lines * (WIDTH * 0.9 / max(columns, 2) * ratio + text) + 0.4
    figure = new_figure(title, height)
    figure.set_layout_engine("compressed")  # panels keep their ratio: what is left over is at both sides
    panels = figure.subplots(lines, columns, squeeze=False).ravel().tolist()
    for axes in panels[number:]:
        axes.set_axis_off()
    return figure, panels[:number]


def wrap(title: str, axes: Axes) -> str:
    """Break the title of a panel between words, or after underscores, where it is wider than the panel."""
    subplot = axes.get_subplotspec()
    columns = 1 if subplot is None else subplot.get_gridspec().ncols
    return fill(title.replace("_", "_ "), 108 // columns).replace("_ ", "_")


def lines_of(figure: Figure, titles: Sequence[str]) -> list[SubFigure]:
    """Cut a figure into lines, each with a title."""
    lines = figure.subfigures(len(titles), 1, squeeze=False)[:, 0].tolist()
    for line, title in zip(lines, titles, strict=True):
        line.suptitle(title, fontsize=TITLE, parse_math=False)
    return lines


def show_map(
    axes: Axes,
    values: NDArray[np.floating],
    title: str,
    norm: Normalize,
    behind: NDArray[np.uint8] | None = None,
    query: tuple[float, float] | None = None,
) -> AxesImage:
    """Draw a map, one square for each token, with no ticks.

    Args:
        axes: To draw on.
        values: ``(h, w)``; NaN is shown as :data:`NO_VALUE`.
        title: Over the map.
        norm: The scale, which maps that are compared share.
        behind: A photograph, ``(H, W, 3)`` uint8, that the map is laid over, in light grey.
        query: Row and column of a token that is marked.
    """
    height, width = values.shape
    extent = (-0.5, width - 0.5, height - 0.5, -0.5)
    if behind is not None:
        grey = behind @ np.array([0.299, 0.587, 0.114]) / 255
        axes.imshow(grey, cmap="gray", vmin=-0.6, vmax=1, extent=extent, interpolation="bilinear")
    alpha = 1.0 if behind is None else 0.65
    axes.set_facecolor(NO_VALUE)
    image = axes.imshow(values, cmap=COLOUR_MAP, norm=norm, extent=extent, alpha=alpha, interpolation="nearest")
    _finish(axes, title, query)
    return image


def show_photograph(
    axes: Axes,
    pixels: NDArray[np.uint8] | NDArray[np.floating],
    title: str,
    query: tuple[float, float] | None = None,
) -> None:
    """Draw a photograph, or a map of colours in 0..1, with a pixel (row, column) marked."""
    axes.imshow(pixels)
    _finish(axes, title, query)


def colour_bar(figure: Figure | SubFigure, axes: Axes | Sequence[Axes], norm: Normalize, label: str) -> None:
    """Add the colour bar of a scale beside some panels, with what it shows and the unit."""
    figure.colorbar(ScalarMappable(norm, COLOUR_MAP), ax=axes, label=label, shrink=0.9, pad=0.015)


def _finish(axes: Axes, title: str, query: tuple[float, float] | None) -> None:
    if query is not None:
        for colour, width in (("white", 3.0), (QUERY, 1.5)):
            axes.plot(
                query[1], query[0], "o", ms=7, markerfacecolor="none", markeredgecolor=colour, mew=width, clip_on=False
            )
    axes.set_xticks([])
    axes.set_yticks([])
    axes.set_title(title, parse_math=False)
