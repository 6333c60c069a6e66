"""Draw the weights of a scan written as attention over the photograph, as Figure 6 of MSVMamba does."""

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure
from numpy.typing import NDArray

from ..attention import RouteAttention, sum_routes
from ..photographs import Photograph
from .style import colour_bar, lines_of, new_figure, show_map, show_photograph, styled

# The weights of neighbours are orders of magnitude larger than those of tokens far away: this many are told apart.
_DECADES = 4


@styled()
def draw(maps: Mapping[str, Sequence[RouteAttention]], photograph: Photograph, query: tuple[int, int]) -> Figure:
    """Draw the weights along each route, and their sum, over the photograph.

    Args:
        maps: By what each line of panels is called: the network and its block.
        photograph: That they are of.
        query: Row and column of the pixel whose token was asked for.
    """
    height, width = photograph.shape
    columns = 2 + max(len(routes) for routes in maps.values())
    line = 0.75 + 7.8 / columns * height / width
    figure = new_figure(
        f"Attention of the marked token to all others: {photograph.name}, {width} x {height}", line * len(maps) + 0.4
    )
    norm = _weight_norm([sum_routes(routes) for routes in maps.values()])
    for part, routes in zip(lines_of(figure, [*maps]), maps.values(), strict=True):
        panels = part.subplots(1, columns)
        show_photograph(panels[0], photograph.pixels, "photograph\n", query)
        named = [(f"{each.route}\n{each.resolution}", each.weights) for each in routes]
        named.append(("sum of the routes\n", sum_routes(routes)))
        for axes, (label, weights) in zip(panels[1:], named, strict=False):
            rows, columns_of_map = weights.shape
            token = ((query[0] + 0.5) / height * rows - 0.5, (query[1] + 0.5) / width * columns_of_map - 0.5)
            seen = np.where(weights > 0, np.clip(weights, norm.vmin, norm.vmax), np.nan)
            show_map(axes, seen, label, norm, behind=photograph.pixels, query=token)
        for axes in panels[1 + len(named) :]:
            axes.set_axis_off()
        colour_bar(part, list(panels), norm, "mean |weight|")
    return figure


def arrays(routes: Sequence[RouteAttention]) -> dict[str, NDArray | list[str]]:
    """Name the arrays of a network's routes, for the ``.npz``."""
    return {
        "route": [each.route for each in routes],
        "resolution": [each.resolution for each in routes],
        "weights": np.stack([each.weights for each in routes]),
        "sum": sum_routes(routes),
    }


def _weight_norm(sums: Sequence[NDArray[np.float64]]) -> LogNorm:
    """Make the scale of whole decades below the largest sum."""
    most = max(float(each.max()) for each in sums) or 1.0  # where no token has a weight
    return LogNorm(most / 10**_DECADES, most)
