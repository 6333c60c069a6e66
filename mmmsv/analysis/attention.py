r"""Write a scan as attention: the weight that each token has in the output of a query token.

.. math:: y_q = \sum_{t \le q} w_{tq} x_t + D x_q, \qquad
    w_{tq} = \sum_n C_{q,n}\, e^{A_n \sum_{t < i \le q} \Delta_i}\, \Delta_t B_{t,n}

for each channel, whose A, step and D are its own. Figure 6 of MSVMamba (arXiv 2405.14174) shows such weights for each
of the four routes of SS2D and of MS2D. The paper does not say how the channels become one number; here it is the mean
of the absolute weights, since positive and negative ones would cancel. Maps show w, without the skip weight D, which
concerns the query token alone and is many times larger.
"""

from collections.abc import Sequence as Several
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from mmmsv.kernels.routes import Route

from .networks import Network
from .photographs import Photograph
from .scans import Sequence, Walk, enlarge, record_sequences


@dataclass(frozen=True)
class RouteAttention:
    """The weights for one query token, along one route.

    Args:
        route: The route.
        resolution: Of the map that it runs over, such as ``'full resolution'``.
        weights: Mean of the absolute w over the channels, ``(H, W)`` float64 at full resolution; 0 where the
            state has not been yet. Where the state has been through several routes, the sum over a token's visits.
    """

    route: Route
    resolution: str
    weights: NDArray[np.float64]


def attention_weights(sequence: Sequence, token: tuple[int, int], route: int) -> Tensor:
    """Compute the weights of all visits for a query token, in each channel.

    It takes ``8 (route + 1) H W D`` bytes; :func:`attention_map` takes 64 MiB of working memory, and returns one map.

    Args:
        sequence: The tokens.
        token: Row and column of the query token.
        route: On which of the sequence's routes it is met, from 0 on.

    Returns:
        ``(route + 1, H, W, D)`` float64: w of the formula, with the skip weight at the query token itself. Its product
        with ``sequence.x``, summed over visits, is the scan's output at that token of that route.

    Raises:
        ValueError: There is no such token or route.
    """
    walk = Walk(sequence, token, route)
    weights = torch.cat([_weights(sequence, walk, channels, steps) for channels, steps in walk.steps_after()], 1)
    weights[-1] += sequence.skip
    return walk.lay_out(weights, 0.0)


def attention_map(sequence: Sequence, token: tuple[int, int], route: int) -> Tensor:
    """Compute the mean over the channels of the absolute w; ``(H, W)`` float64, summed over a token's visits."""
    walk = Walk(sequence, token, route)
    total = torch.zeros(len(walk.tokens), dtype=torch.float64)
    for channels, steps in walk.steps_after():
        total += _weights(sequence, walk, channels, steps).abs().sum(1)
    return walk.lay_out(total / len(sequence.skip), 0.0).sum(0)


def attention_maps(
    network: Network, photograph: Photograph, stage: int, block: int, query: tuple[int, int]
) -> list[RouteAttention]:
    """Compute the attention of a block for the token at a pixel, along each of its routes.

    Args:
        network: With a backbone of this package.
        photograph: The photograph.
        stage: Of the block; negative ones count from the last.
        block: Within its stage; the same.
        query: Row and column of the pixel.

    Returns:
        A map for each route, those at full resolution first.

    Raises:
        ValueError: There is no such block or pixel, or no scan.
    """
    return [
        RouteAttention(route, str(sequence), _enlarged(sequence, sequence.token_at(query, photograph.shape), k))
        for sequence in record_sequences(network, network.prepare([photograph]), stage, block)
        for k, route in enumerate(sequence.routes)
    ]


def sum_routes(maps: Several[RouteAttention]) -> NDArray[np.float64]:
    """Sum the maps of all routes, ``(H, W)``: a token of lower resolution counts at each place that it stands for."""
    return np.sum([each.weights for each in maps], axis=0)


def _weights(sequence: Sequence, walk: Walk, channels: slice, steps: Tensor) -> Tensor:
    """Compute w of the formula for some channels, ``(T, d)``."""
    A, tokens = sequence.A[channels].double(), walk.tokens
    B, C = sequence.B.flatten(0, 1)[tokens].double(), sequence.C.flatten(0, 1)[tokens[-1]].double()
    weights = ((steps[:, :, None] * A).exp_() @ (B * C)[:, :, None]).squeeze(2)
    return weights * sequence.step.flatten(0, 1)[tokens, channels]


def _enlarged(sequence: Sequence, token: tuple[int, int], route: int) -> NDArray[np.float64]:
    return enlarge(attention_map(sequence, token, route), sequence.stride, sequence.full_size).numpy()
