r"""Compute which pixels of a photograph the central token of the last map depends on, and how much.

The effective receptive field of Luo et al. (arXiv 1701.04128), as Figure 5 of VMamba (arXiv 2401.10166) shows it. The
last map y is ``(C, h, w)``, the image x is ``(3, H, W)``, and the central token of y is in row ``h // 2`` and column
``w // 2``. For each pixel

.. math:: G = \sum_{colours} \left| \frac{\partial}{\partial x} \sum_c \max(y_{c, h/2, w/2}, 0) \right|

and G is averaged over photographs. The papers leave open what of the token is differentiated. Here it is the positive
part of its channels: their plain sum is constant behind a LayerNorm, and before training it has no gradient at all.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from math import ceil

import numpy as np
import torch
from numpy.typing import NDArray

from .networks import Network
from .photographs import Photograph, of_one_size

# Shares of the gradient whose squares are reported.
SHARES = (0.2, 0.5, 0.9, 0.99)


@dataclass(frozen=True)
class ReceptiveField:
    """The effective receptive field of a token.

    Args:
        gradient: G of the formula, ``(H, W)`` float64, not all zeros.
        centre: Row and column of the middle of the token's patch, in pixels, where (0, 0) is the middle of the first.
    """

    gradient: NDArray[np.float64]
    centre: tuple[float, float]

    def side(self, share: float) -> int:
        """Return the side of the smallest square around the centre that holds a share of the gradient.

        Args:
            share: In (0, 1].

        Returns:
            In pixels; at most the longer side of the photograph, since the centre is half a patch off its middle.
        """
        height, width = self.gradient.shape
        rows, columns = np.abs(np.arange(height) - self.centre[0]), np.abs(np.arange(width) - self.centre[1])
        distances, rings = np.unique(np.maximum(rows[:, None], columns), return_inverse=True)
        within = np.bincount(rings.ravel(), self.gradient.ravel()).cumsum()
        distance = distances[np.argmax(within >= share * within[-1] * (1 - 1e-9))]
        return min(ceil(2 * distance + 1 - 1e-6), max(height, width))

    @property
    def sides(self) -> dict[float, int]:
        """The side of the square for each of :data:`SHARES`."""
        return {share: self.side(share) for share in SHARES}


def receptive_field(network: Network, photographs: Iterable[Photograph]) -> ReceptiveField:
    """Compute the effective receptive field of a network's last map, averaged over photographs.

    Args:
        network: The network.
        photographs: Of one size, at least one.

    Raises:
        ValueError: There is no photograph, or their sizes differ; the network has no such map, or its central token
            does not depend on any photograph.
    """
    total, size, tokens, number = torch.zeros(()), None, (0, 0), 0
    for photograph in of_one_size(photographs):
        number += 1
        size = photograph.shape
        image = network.prepare([photograph]).requires_grad_()
        with torch.enable_grad(), network.frozen():
            last = network.last_map(image)[0]
            tokens = last.shape[1], last.shape[2]
            token = last[:, tokens[0] // 2, tokens[1] // 2]
            (gradient,) = torch.autograd.grad(token.clamp(min=0).sum(), image)
        total = total + gradient[0].double().abs().sum(0)
    if size is None:
        raise ValueError("there is no photograph to compute the receptive field with; give one at least")
    if not 0 < (amount := float(total.sum())) < float("inf"):
        raise ValueError(
            f"the central token of {network.name}, {network.weights}, has a gradient of {amount:g}: no channel of it "
            "is positive, or its numbers overflow; give a checkpoint, or another photograph"
        )
    row, column = ((n // 2 + 0.5) * pixels / n - 0.5 for n, pixels in zip(tokens, size, strict=True))
    return ReceptiveField((total / number).numpy(), (row, column))
