"""Draw what is measured over the size of the image."""

from collections.abc import Iterable, Mapping, Sequence

from matplotlib.axes import Axes
from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

from .style import COLOURS, MARKERS

# Ticks that are closer than this factor of pixels share a label.
_CLOSE = 1.2
Size = tuple[int, int]


def draw_curves(
    axes: Axes, curves: Mapping[str, Sequence[tuple[Size, float]]], sizes: Iterable[Size], logarithmic: bool
) -> None:
    """Draw a curve for each model over the pixels of the image, on a logarithmic axis.

    Args:
        axes: To draw on.
        curves: Sizes (H, W) and values by the name of the model. One without values keeps its colour and its place in
            the legend, so that panels agree.
        sizes: All sizes of the figure, which get ticks.
        logarithmic: Whether the values are drawn so, too; else the axis begins at 0.
    """
    for i, (name, points) in enumerate(curves.items()):
        ordered = sorted((height * width, value) for (height, width), value in points)
        style = {"color": COLOURS[i % len(COLOURS)], "marker": MARKERS[i % len(MARKERS)]}
        axes.plot(*(zip(*ordered, strict=True) if ordered else ([], [])), label=name, markersize=5, **style)
    axes.set_xscale("log")
    _label_sizes(axes, sizes)
    if logarithmic:
        axes.set_yscale("log")
        axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.yaxis.set_major_formatter(FuncFormatter(lambda y, _: f"{y:g}"))
        axes.yaxis.set_minor_locator(NullLocator())
    else:
        axes.set_ylim(0, 1.05 * axes.get_ylim()[1])  # what is almost constant has room for its markers, too
    axes.grid(True, which="major", alpha=0.3)
    axes.set_xlabel("image, H x W", fontsize=9)
    axes.tick_params(labelsize=8)


def _label_sizes(axes: Axes, sizes: Iterable[Size]) -> None:
    """Put a tick at each size; those that would overlap share one, a line for each."""
    ticks: list[tuple[float, list[str]]] = []
    for pixels, height, width in sorted({(height * width, height, width) for height, width in sizes}):
        label = str(height) if height == width else f"{height} x {width}"
        if ticks and pixels < _CLOSE * ticks[-1][0]:
            ticks[-1][1].append(label)
        else:
            ticks.append((pixels, [label]))
    axes.set_xticks([pixels for pixels, _ in ticks], ["\n".join(labels) for _, labels in ticks])
    axes.xaxis.set_minor_locator(NullLocator())
