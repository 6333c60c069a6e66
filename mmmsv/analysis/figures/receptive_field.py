"""Draw which pixels the central token of the last map depends on, as Figure 5 of VMamba does."""

from collections.abc import Mapping

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from numpy.typing import NDArray

from ..receptive_field import ReceptiveField
from .style import colour_bar, new_panels, show_map, styled, wrap

# Smaller gradients are drawn as this one, of the largest of a map.
_LEAST = 1e-4
_MOST_CELLS = 256  # along a side of a panel; so many pixels has one where the figure is 900 pixels wide


@styled()
def draw(fields: Mapping[str, ReceptiveField], what: str) -> Figure:
    """Draw the gradient of each network relative to its largest, on one scale, with the squares that hold its shares.

    Args:
        fields: By the titles of their networks.
        what: What was averaged over, for the title.
    """
    figure, panels = new_panels(f"Effective receptive field of the central token: {what}", len(fields), 1, 0.6)
    norm = LogNorm(_LEAST, 1)
    for axes, (title, field) in zip(panels, fields.items(), strict=True):
        cells = _pooled(field.gradient)
        show_map(axes, np.maximum(cells / cells.max(), _LEAST), wrap(title, axes), norm)
        _mark_squares(axes, field, field.gradient.shape[0] / cells.shape[0])
    colour_bar(figure, panels, norm, "gradient, of its largest")
    return figure


def arrays(field: ReceptiveField) -> dict[str, NDArray | list[float] | list[int] | tuple[float, float]]:
    """Name the arrays of a network, for the ``.npz``."""
    return {
        "gradient": field.gradient.astype(np.float32),
        "centre": field.centre,
        "share": [*field.sides],
        "side": [*field.sides.values()],
    }


def _pooled(gradient: NDArray[np.float64]) -> NDArray[np.float64]:
    """Average squares of pixels, of a power of 2, so that a panel shows them all."""
    height, width = gradient.shape
    side = 1
    while max(height, width) > side * _MOST_CELLS and height % (2 * side) == 0 == width % (2 * side):
        side *= 2
    return gradient.reshape(height // side, side, width // side, side).mean((1, 3))


def _mark_squares(axes: Axes, field: ReceptiveField, pixels: float) -> None:
    """Outline the squares, and write their sides below; ``pixels`` to a cell.

    One that would stand out of the photograph is moved into it, where it holds the same and more.
    """
    for side in field.sides.values():
        places = zip(field.centre, field.gradient.shape, strict=True)
        top, left = (max(min(at + 0.5 - side / 2, length - side), 0) / pixels - 0.5 for at, length in places)
        axes.add_patch(Rectangle((left, top), side / pixels, side / pixels, fill=False, ec="white", lw=0.8))
    rows = [f"{100 * share:.0f} %: {side} px" for share, side in field.sides.items()]
    axes.set_xlabel("\n".join("   ".join(rows[i : i + 2]) for i in (0, 2)))
