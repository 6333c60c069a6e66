r"""Compute how much of a token is left in the state when a scan comes to another one.

From a token t to a token q the state decays by :math:`e^{A \sum_{t < i \le q} \Delta_i}`, a number for each channel and
state. Figures 2 and 4 of MSVMamba (arXiv 2405.14174) show its mean, and the paper argues from it for scans at
lower resolution: tokens that are neighbours in the picture may be a whole row apart along a route.

The paper leaves open how the numbers of a token become one. Here the mean is over channels and states, then over
photographs, and ratios are ratios of these means. A token that a row-major route visits after the query token reaches
it along the reverse route only, so the horizontal map joins the two, and so does the vertical one.
"""

import math
from collections.abc import Iterable
from collections.abc import Sequence as Several
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from mmmsv.kernels.routes import Route

from .networks import Network
from .photographs import Photograph, of_one_size
from .scans import Sequence, Walk, enlarge, record_sequences

Map = NDArray[np.float64]
# Where one axis keeps this many times what the other does, the two disagree: the threshold of Figure 2d.
THRESHOLD = 10.0


@dataclass(frozen=True)
class RouteDecay:
    """The decay from each token to one of them, along one route.

    Args:
        route: The route.
        resolution: Of the map that it runs over, such as ``'full resolution'``.
        log_decay: Natural logarithm of the mean decay, ``(H, W)`` at full resolution; -inf where the route comes to the
            token after the query token.
    """

    route: Route
    resolution: str
    log_decay: Map

    @property
    def mean(self) -> float:
        """Mean decay of the tokens that reach the query token."""
        return float(np.exp(self.log_decay[np.isfinite(self.log_decay)]).mean())


@dataclass(frozen=True)
class AxisDecay:
    """The decay from each token to one of them, along the horizontal and along the vertical routes.

    Args:
        log_horizontal: Natural logarithm of the mean decay, ``(H, W)``; -inf where no horizontal route leads to the
            query token.
        log_vertical: The same of the vertical routes.
    """

    log_horizontal: Map
    log_vertical: Map

    @property
    def log_ratio(self) -> Map:
        """Natural logarithm of the larger of the two ratios of both decays, ``(H, W)``; NaN where one of them is 0."""
        both = np.isfinite(self.log_horizontal) & np.isfinite(self.log_vertical)
        with np.errstate(invalid="ignore"):  # infinity less infinity, which is not taken
            return np.where(both, np.abs(self.log_horizontal - self.log_vertical), np.nan)

    @property
    def share(self) -> float:
        """Share of ratios above :data:`THRESHOLD`, of the tokens that both axes have a decay for; NaN without any."""
        ratios = self.log_ratio[~np.isnan(self.log_ratio)]
        return float((ratios > np.log(THRESHOLD)).mean()) if ratios.size else float("nan")

    @property
    def share_in_words(self) -> str:
        """The share in per cent, or that there is none, as where all routes are horizontal."""
        return "no token has both decays" if np.isnan(self.share) else f"{100 * self.share:.0f} %"


def log_decay(sequence: Sequence, token: tuple[int, int], route: int) -> Tensor:
    """Return the logarithm of the mean decay from each visit to a token, over channels and states.

    Args:
        sequence: The tokens.
        token: Row and column of the query token.
        route: On which of the sequence's routes it is met, from 0 on.

    Returns:
        ``(route + 1, H, W)`` float64, a map for each route up to that one; -inf where the visit comes after it.

    Raises:
        ValueError: There is no such token or route.
    """
    walk = Walk(sequence, token, route)
    parts = [
        (steps[:, :, None] * sequence.A[channels].double()).flatten(1).logsumexp(1)
        for channels, steps in walk.steps_after()
    ]
    mean = torch.stack(parts).logsumexp(0) - math.log(sequence.A.numel())
    return walk.lay_out(mean, -torch.inf)


def decay_maps(
    network: Network,
    photographs: Iterable[Photograph],
    stage: int,
    block: int,
    towards: tuple[int, int] | None,
) -> list[RouteDecay]:
    """Compute the decay along each route of a block, averaged over photographs.

    Args:
        network: With a backbone of this package.
        photographs: Of one size, at least one.
        stage: Of the block; negative ones count from the last.
        block: Within its stage; the same.
        towards: Row and column of a pixel, whose token the decay is computed to; None: the token that each route visits
            last.

    Returns:
        A map for each route, those at full resolution first. Of a sequence of several routes each map is of the visits
        on its own route.

    Raises:
        ValueError: There is no such block or pixel, there is no photograph, or their sizes differ.
    """
    averages: list[RouteDecay] = []
    number, size = 0, None
    for photograph in of_one_size(photographs):
        number += 1
        size = photograph.shape
        sequences = record_sequences(network, network.prepare([photograph]), stage, block)
        maps = [
            _route_decay(sequence, k, sequence.last_token(k) if towards is None else sequence.token_at(towards, size))
            for sequence in sequences
            for k in range(len(sequence.routes))
        ]
        averages = [_add(a, b) for a, b in zip(averages, maps, strict=True)] if averages else maps
    if not number:
        raise ValueError("there is no photograph to compute the decay of; give one at least")
    return [replace(each, log_decay=each.log_decay - math.log(number)) for each in averages]


def join_axes(maps: Several[RouteDecay]) -> AxisDecay:
    """Join the maps of the horizontal routes, and those of the vertical ones.

    A token that several routes bring to the query token has the mean of their decays.

    Args:
        maps: Towards one token, from :func:`decay_maps`.
    """
    return AxisDecay(*(_mean_of_reached(maps, axis) for axis in (("row", "row_rev"), ("col", "col_rev"))))


def _route_decay(sequence: Sequence, route: int, token: tuple[int, int]) -> RouteDecay:
    own = enlarge(log_decay(sequence, token, route)[-1], sequence.stride, sequence.full_size)
    return RouteDecay(sequence.routes[route], str(sequence), own.numpy())


def _add(a: RouteDecay, b: RouteDecay) -> RouteDecay:
    return replace(a, log_decay=np.logaddexp(a.log_decay, b.log_decay))


def _mean_of_reached(maps: Several[RouteDecay], routes: Several[Route]) -> Map:
    chosen = [each.log_decay for each in maps if each.route in routes]
    total = np.logaddexp.reduce(chosen) if chosen else np.full_like(maps[0].log_decay, -np.inf)
    reached = np.isfinite(chosen).sum(0) if chosen else np.zeros_like(total)
    return total - np.log(np.maximum(reached, 1))
