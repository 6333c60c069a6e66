"""List the tokens of a small grid in the order in which a 2-D scan visits them."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from mmmsv.kernels import Route
from mmmsv.models.ms2d import Scan2D

from .scans import layers_of, runs_of, visits

# Smaller grids show no order, and in larger ones a token is too small to be seen.
LEAST, MOST = 4, 12


@dataclass(frozen=True)
class GridSequence:
    """The tokens of one or several routes over a grid, through which one state runs.

    Args:
        routes: One route, or those that the state runs on through, in their order.
        stride: How many tokens of the full-resolution grid one of these stands for, along a side.
        tokens: Row and column of each token that is visited, on the map of this resolution, in the order of the visits:
            one ``(H * W, 2)`` for each route, int64.
    """

    routes: tuple[Route, ...]
    stride: int
    tokens: tuple[NDArray[np.int64], ...]

    @property
    def length(self) -> int:
        """How many visits there are."""
        return sum(len(each) for each in self.tokens)

    @property
    def size(self) -> tuple[int, int]:
        """H and W of the map."""
        rows, columns = self.tokens[0].max(0) + 1
        return int(rows), int(columns)

    @property
    def resolution(self) -> str:
        """The name of the resolution."""
        return "full resolution" if self.stride == 1 else f"1/{self.stride} resolution"


def grid_sequences(scan: Scan2D, rows: int, columns: int) -> list[GridSequence]:
    """List the sequences of a 2-D scan over a grid of ``rows`` x ``columns`` tokens.

    The order of a route is that of :func:`mmmsv.kernels.routes.unroll`; a map of lower resolution has its sides rounded
    up, as the convolution makes it.

    Args:
        scan: Of a block.
        rows: 4 to 12.
        columns: The same.

    Returns:
        The full-resolution sequences, then those of lower resolution.

    Raises:
        ValueError: The grid is too small or too large.
    """
    if not all(LEAST <= side <= MOST for side in (rows, columns)):
        raise ValueError(
            f"the grid is {rows} x {columns} tokens, expected {LEAST} to {MOST} rows and {LEAST} to {MOST} columns, "
            "such as 8 x 6"
        )
    sequences = []
    for layer, stride in layers_of(scan).items():
        size = (-(-rows // stride), -(-columns // stride))
        for routes in runs_of(layer):
            orders = (visits(route, size).numpy() for route in routes)
            tokens = tuple(np.stack(np.divmod(order, size[1]), 1) for order in orders)
            sequences.append(GridSequence(routes, stride, tokens))
    return sequences
