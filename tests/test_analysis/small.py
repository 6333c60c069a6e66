"""Small networks, sequences and photographs."""

import numpy as np
import torch

from mmmsv.analysis.flops import Classifier
from mmmsv.analysis.networks import Network
from mmmsv.analysis.photographs import Photograph
from mmmsv.analysis.scans import Sequence
from mmmsv.models import MSVMamba

SS2D = {"full_routes": ("row", "col", "row_rev", "col_rev"), "half_routes": ()}
HALF_SS2D = {"full_routes": (), "half_routes": ("row", "col", "row_rev", "col_rev")}


def small_network(**arch: object) -> Network:
    """A classifier of 3 classes on two stages of one block each, with random weights."""
    torch.manual_seed(0)
    backbone = MSVMamba({"base": "nano", "embed_dims": (8, 16), "depths": (1, 1), **arch})
    return Network("small", "random weights", Classifier(backbone, backbone.out_channels[-1], 3).eval())


def photograph(name: str = "noise", height: int = 64, width: int = 64, seed: int = 0) -> Photograph:
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Photograph(name, pixels, (width, height))


def sequence(height: int, width: int, routes: tuple[str, ...], channels: int = 3, states: int = 2) -> Sequence:
    """Random tokens."""
    generator = torch.Generator().manual_seed(0)

    def draw(*shape: int) -> torch.Tensor:
        return torch.rand(*shape, generator=generator, dtype=torch.float64)

    size = (height, width)
    x, step, B, C = draw(*size, channels), draw(*size, channels), draw(*size, states), draw(*size, states)
    return Sequence(routes, size, 1, x, step, B, C, -draw(channels, states), draw(channels))
