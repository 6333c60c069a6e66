"""Draw class activation maps over a photograph."""

from collections.abc import Mapping

import torch
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from numpy.typing import ArrayLike
from torch.nn.functional import interpolate

from ..cam import Activation
from ..photographs import Photograph
from .style import QUERY, colour_bar, new_panels, show_map, show_photograph, styled, wrap


@styled()
def draw(activations: Mapping[str, Activation], photograph: Photograph) -> Figure:
    """Draw a photograph, and over it the map of each network relative to its largest value, with the box if any.

    Outputs of networks have no common unit, so there is no common one of their maps.

    Args:
        activations: By the titles of their networks.
        photograph: That they are of.
    """
    height, width = photograph.shape
    title = f"Class activation (Grad-CAM): {photograph.name}, {width} x {height}"
    figure, panels = new_panels(title, len(activations) + 1, height / width, 0.65)
    show_photograph(panels[0], photograph.pixels, "photograph")
    norm = Normalize(0, 1)
    for axes, (network, activation) in zip(panels[1:], activations.items(), strict=True):
        values = torch.from_numpy(activation.values / (activation.values.max() or 1.0))
        smooth = interpolate(values[None, None], photograph.shape, mode="bilinear")[0, 0].numpy()
        where = f"stage {activation.stage}"
        show_map(axes, smooth, f"{wrap(network, axes)}\n{activation}, {where}", norm, photograph.pixels)
        if activation.box is not None:
            left, top, right, bottom = activation.box
            axes.add_patch(Rectangle((left, top), right - left, bottom - top, fill=False, ec=QUERY, lw=1.5))
    colour_bar(figure, panels, norm, "activation, of its largest")
    return figure


def arrays(activation: Activation) -> dict[str, ArrayLike]:
    """Name the arrays of a network, for the ``.npz``."""
    return {
        "activation": activation.values,
        "stage": activation.stage,
        "label": activation.label,
        "output": activation.output,
        "box": [] if activation.box is None else activation.box,
    }
