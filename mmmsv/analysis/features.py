"""Compute what can be shown of the maps that leave the stages of a backbone.

Of the tokens of a stage, ``(h * w, C)``: their three principal components, as colours; the norm of each; and the cosine
of the angle between each and the token of a query pixel. The maps are those that leave the blocks, which the next stage
gets, before the output norms. They are computed for all stages, whichever of them a task takes.
"""

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import pad

from .networks import Network
from .photographs import Photograph

_COMPONENTS = 3
# Of the values of a component, what is as dark and as bright as can be; a few tokens are far out.
_DARKEST, _BRIGHTEST = 0.01, 0.99


@dataclass(frozen=True)
class StageFeatures:
    """The map that leaves a stage, ``h x w`` tokens.

    Args:
        stage: From 0 on.
        channels: Channels C of each token.
        components: The three principal components as RGB in 0..1, ``(h, w, 3)`` float32.
        explained: Share of the variance that each of them has, ``(3,)`` float32.
        norm: Euclidean norm of each token, ``(h, w)`` float32.
        similarity: Cosine of the angle to the query token, ``(h, w)`` float32 in -1..1; 0 of a token that is 0.
    """

    stage: int
    channels: int
    components: NDArray[np.float32]
    explained: NDArray[np.float32]
    norm: NDArray[np.float32]
    similarity: NDArray[np.float32]


def feature_maps(network: Network, photograph: Photograph, query: tuple[int, int]) -> list[StageFeatures]:
    """Compute the features of each stage, for one photograph.

    Args:
        network: With a backbone of this package.
        photograph: The photograph.
        query: Row and column of the pixel whose token the others are compared with.

    Returns:
        Those of the first stage first.

    Raises:
        ValueError: There is no such pixel; the network has no such backbone, or computes numbers that are not finite.
    """
    height, width = photograph.shape
    if not (0 <= query[0] < height and 0 <= query[1] < width):
        raise ValueError(
            f"there is no pixel {query} (row, column) in {photograph.name}, which has {height} x {width}: give a row "
            f"in 0..{height - 1} and a column in 0..{width - 1}"
        )
    features = []
    for i, x in enumerate(network.run_stages(network.prepare([photograph]))):
        tokens = x[0].double()
        components, explained = principal_components(tokens)
        row, column = (at * n // pixels for at, n, pixels in zip(query, x.shape[1:3], (height, width), strict=True))
        similarity = torch.cosine_similarity(tokens, tokens[row, column], dim=-1).clamp(-1, 1)
        found = (components, explained, tokens.norm(dim=-1), similarity)
        features.append(StageFeatures(i, x.shape[-1], *(each.float().numpy() for each in found)))
    return features


def principal_components(tokens: Tensor) -> tuple[Tensor, Tensor]:
    """Compute the principal components of tokens, each scaled to 0..1.

    They are projections on the eigenvectors of the exact covariance of the channels, the largest eigenvalue first. An
    eigenvector has no sign of its own: here its channel of largest magnitude is positive. Each component is
    scaled by itself, its quantile 0.01 to 0 and 0.99 to 1, and what is beyond is clipped.

    Args:
        tokens: ``(h, w, C)``, floating point.

    Returns:
        The components, ``(h, w, 3)``, and the share of the variance that each has, ``(3,)``. Components without
        variance, as where C is below 3 or all tokens are one, are 0.5.
    """
    flat = tokens.flatten(0, 1)
    flat = pad(flat - flat.mean(0), (0, max(0, _COMPONENTS - flat.shape[1])))
    variances, vectors = torch.linalg.eigh(flat.T @ flat / len(flat))
    variances, vectors = variances.flip(0).clamp(min=0), vectors.flip(1)[:, :_COMPONENTS]
    signs = vectors.gather(0, vectors.abs().argmax(0, keepdim=True)).sign()
    values = flat @ (vectors * signs)
    low, high = values.quantile(values.new_tensor([_DARKEST, _BRIGHTEST]), dim=0)
    # What rounding leaves is no variance.
    constant = variances[:_COMPONENTS] <= 1e-12 * tokens.square().mean(dim=(0, 1)).sum()
    scaled = ((values - low) / (high - low).masked_fill(constant, 1)).clamp(0, 1).masked_fill(constant, 0.5)
    share = (variances[:_COMPONENTS] / variances.sum()).masked_fill(constant, 0)
    return scaled.unflatten(0, tokens.shape[:2]), share
