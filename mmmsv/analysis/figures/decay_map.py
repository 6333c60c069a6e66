"""Draw the decay along both axes, as Figure 2 of MSVMamba does, and along each route, as Figure 4 does."""

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.colors import LogNorm, Normalize
from matplotlib.figure import Figure
from numpy.typing import NDArray

from ..decay import THRESHOLD, AxisDecay, Map, RouteDecay
from .style import colour_bar, lines_of, new_figure, show_map, styled

# Smaller decays are drawn as this one; larger ratios as this one.
_LEAST, _MOST = 1e-6, 1e3


@styled()
def draw_axes(decays: Mapping[str, AxisDecay], query: tuple[float, float], what: str) -> Figure:
    """Draw the horizontal and the vertical decay, the larger of their ratios, and where it is above the threshold.

    Args:
        decays: By the titles of their networks; a line of panels for each.
        query: Position of the query token, from 0 to 1 along the rows and the columns.
        what: What was averaged over, for the title.
    """
    figure = new_figure(f"Decay from each token to the marked one: {what}", 2.9 * len(decays) + 0.4)
    norm = _decay_norm([each for decay in decays.values() for each in (decay.log_horizontal, decay.log_vertical)])
    largest = max(_largest(decay.log_ratio) for decay in decays.values())
    ratios = LogNorm(1, np.exp(np.clip(largest, 2 * np.log(THRESHOLD), np.log(_MOST))))
    for part, decay in zip(lines_of(figure, [*decays]), decays.values(), strict=True):
        panels = part.subplots(1, 4)
        height, width = decay.log_ratio.shape
        token = (int(query[0] * height), int(query[1] * width))
        show_map(panels[0], _decay(decay.log_horizontal), "along rows", norm, query=token)
        show_map(panels[1], _decay(decay.log_vertical), "along columns", norm, query=token)
        with np.errstate(over="ignore"):
            show_map(panels[2], np.clip(np.exp(decay.log_ratio), 1, _MOST), "larger ratio", ratios, query=token)
        above = np.where(np.isnan(decay.log_ratio), np.nan, decay.log_ratio > np.log(THRESHOLD))
        share = f"ratio above {THRESHOLD:g}: {decay.share_in_words}"
        show_map(panels[3], above.astype(float), share, Normalize(0, 1), query=token)
        colour_bar(part, list(panels[:2]), norm, "mean decay")
        colour_bar(part, panels[2], ratios, "ratio")
    return figure


@styled()
def draw_routes(decays: Mapping[str, Sequence[RouteDecay]], what: str) -> Figure:
    """Draw the decay along each route towards the token that it visits last.

    Args:
        decays: By the titles of their networks; a line of panels for each.
        what: What was averaged over, for the title.
    """
    figure = new_figure(f"Decay from each token to the last one of the route: {what}", 2.9 * len(decays) + 0.4)
    norm = _decay_norm([route.log_decay for routes in decays.values() for route in routes])
    columns = max(len(routes) for routes in decays.values())
    for part, routes in zip(lines_of(figure, [*decays]), decays.values(), strict=True):
        panels = part.subplots(1, columns, squeeze=False)[0]
        for axes, route in zip(panels, routes, strict=False):
            # Several, where the token is one of lower resolution.
            last = np.argwhere(route.log_decay == route.log_decay.max()).mean(0)
            label = f"{route.route}, {route.resolution}\nmean {route.mean:.3f}"
            show_map(axes, _decay(route.log_decay), label, norm, query=(float(last[0]), float(last[1])))
        for axes in panels[len(routes) :]:
            axes.set_axis_off()
        colour_bar(part, list(panels), norm, "mean decay")
    return figure


def axes_arrays(decay: AxisDecay) -> dict[str, NDArray | float]:
    """Name the arrays of a network's axes, for the ``.npz``."""
    return {
        "log_horizontal": decay.log_horizontal,
        "log_vertical": decay.log_vertical,
        "log_ratio": decay.log_ratio,
        "share_above_threshold": decay.share,
    }


def route_arrays(routes: Sequence[RouteDecay]) -> dict[str, NDArray | list[str] | list[float]]:
    """Name the arrays of a network's routes, for the ``.npz``."""
    return {
        "route": [route.route for route in routes],
        "resolution": [route.resolution for route in routes],
        "log_decay": np.stack([route.log_decay for route in routes]),
        "mean": [route.mean for route in routes],
    }


def _decay(log_decay: Map) -> Map:
    return np.where(np.isfinite(log_decay), np.maximum(np.exp(log_decay), _LEAST), np.nan)


def _decay_norm(maps: Sequence[Map]) -> LogNorm:
    """Make the scale from the decades that the maps are in, up to 1."""
    least = min(float(each[np.isfinite(each)].min()) for each in maps if np.isfinite(each).any())
    return LogNorm(max(_LEAST, 10.0 ** np.floor(min(least / np.log(10), -1))), 1)


def _largest(values: Map) -> float:
    return float(np.nanmax(values, initial=0.0))
