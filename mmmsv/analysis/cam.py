r"""Compute where in a photograph a network sees what it decides for: class activation maps by Grad-CAM.

Grad-CAM (Selvaraju et al., arXiv 1610.02391) weighs the channels of a map A, ``(C, h, w)``, by the gradient of an
output y, averaged over the map, and keeps what speaks for it:

.. math:: M = \max\Bigl(\sum_c \alpha_c A_c, 0\Bigr), \qquad
   \alpha_c = \frac{1}{h w} \sum_{i, j} \frac{\partial y}{\partial A_{cij}}

Of a classifier, y is the logit of a class; of a detector it is the score of a box that it finds, after suppressing
others. A is a map that the backbone returns. What comes before it is not differentiated, and keeps no memory.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from .flops import describe_image
from .networks import Network
from .photographs import Photograph


@dataclass(frozen=True)
class Activation:
    """The class activation map of one output.

    Args:
        values: M of the formula, ``(h, w)`` float64.
        stage: Whose map A is.
        label: Name of the class, or its number where its name is not known.
        output: y of the formula.
        box: Left, top, right and bottom of a detector's box, in pixels of the photograph as the network gets it; None
            of a classifier.
    """

    values: NDArray[np.float64]
    stage: int
    label: str
    output: float
    box: tuple[float, float, float, float] | None = None

    def __str__(self) -> str:
        """Name the output, with its value."""
        return f"{self.label}, {'logit' if self.box is None else 'score'} {self.output:.2f}"


@dataclass(frozen=True)
class _Output:
    """What is differentiated: a number of the network, the class that it is of, and its box."""

    value: Tensor
    label: int
    box: tuple[float, float, float, float] | None = None


def class_activation(
    network: Network, photograph: Photograph, target: int | None = None, stage: int = -1
) -> Activation:
    """Compute the class activation map of an output.

    Args:
        network: A classifier, or a detector of mmdet.
        photograph: The photograph.
        target: Of a classifier, the number of the class; None is the predicted one. Of a detector, which box, by its
            score: 0, or None, is the best.
        stage: Whose map is taken; negative ones count from the last map that the backbone returns.

    Raises:
        ValueError: The network is neither, or its classifier is random beside a checkpoint; it has no such class, box
            or map; it finds nothing; it computes numbers that are not finite; or its output does not depend on the map.
    """
    backbone = getattr(network.model, "backbone", None)
    if not isinstance(backbone, nn.Module):
        raise ValueError(
            f"{network.name} has no backbone whose maps are known; give an arch, or a config of mmpretrain or mmdet"
        )
    if random := [name for name in network.lacks if not name.startswith("backbone.")]:
        raise ValueError(
            f"{network.weights} has no {', '.join(random)}, which would be random in {network.name}; give the "
            "checkpoint of a classifier"
        )
    maps: list[Tensor] = []
    image = network.prepare([photograph])
    hook = backbone.register_forward_hook(lambda layer, _, returned: maps.extend(_differentiable(layer, returned)))
    try:
        with torch.enable_grad(), network.frozen():
            if hasattr(network.model, "with_bbox"):  # a property of mmdet's detectors
                output = _box(network, image, photograph, target or 0)
            else:
                output = _logit(network, image, target)
    finally:
        hook.remove()
    label = network.classes[output.label] if output.label < len(network.classes) else f"class {output.label}"
    stages = list(getattr(backbone, "out_indices", range(len(maps))))
    number = stages[-1] if stage == -1 else stage
    if number not in stages:
        raise ValueError(
            f"the backbone of {network.name} returns no map of stage {stage}; choose {', '.join(map(str, stages))}, or "
            "-1 for the last of them"
        )
    values = maps[stages.index(number)]
    if not (output.value.isfinite() and values.isfinite().all()):
        raise ValueError(f"{network.title} computes infinite numbers or NaN; give other weights")
    gradient = torch.autograd.grad(output.value, values, allow_unused=True)[0] if output.value.requires_grad else None
    if gradient is None or not gradient.any():
        raise ValueError(f"the output of {network.name} for {label} does not depend on stage {number}; choose another")
    weighed = (gradient.mean((2, 3), keepdim=True) * values).sum(1).clamp(min=0)[0]
    return Activation(weighed.detach().double().numpy(), number, label, output.value.item(), output.box)


def _differentiable(backbone: nn.Module, returned: object) -> list[Tensor]:
    """Have gradients computed for the maps that a backbone returns, and list them."""
    maps = list(returned) if isinstance(returned, (tuple, list)) else [returned]
    if not all(isinstance(each, Tensor) and each.dim() == 4 for each in maps):
        raise ValueError(
            f"the backbone, a {type(backbone).__name__}, returns no maps (B, C, h, w), whose activation can be shown; "
            "give a config whose backbone does"
        )
    for each in maps:
        each.requires_grad_()
    return maps


def _box(network: Network, image: Tensor, photograph: Photograph, target: int) -> _Output:
    """Find boxes, and choose the one whose score is differentiated."""
    detector: Any = network.model
    found = detector.predict(image, [describe_image(photograph.shape)], rescale=False)[0].pred_instances
    if not len(found):
        raise ValueError(
            f"{network.name}, {network.weights}, finds nothing in {photograph.name}; give the checkpoint of a trained "
            "detector, or another photograph"
        )
    if not 0 <= target < len(found):
        raise ValueError(
            f"there is no box {target}: {network.name} finds {len(found)} in {photograph.name}, so give 0 (the best) "
            f"to {len(found) - 1}"
        )
    k = int(found.scores.argsort(descending=True)[target])
    left, top, right, bottom = found.bboxes[k].tolist()
    return _Output(found.scores[k], int(found.labels[k]), (left, top, right, bottom))


def _logit(network: Network, image: Tensor, target: int | None) -> _Output:
    """Compute logits, and choose the one that is differentiated."""
    logits = network.model(image)
    if not isinstance(logits, Tensor) or logits.dim() != 2:
        raise ValueError(
            f"{network.name} ({type(network.model).__name__}) neither classifies nor finds boxes; give an arch, or a "
            "config of mmpretrain or mmdet that does"
        )
    classes = logits.shape[1]
    if target is not None and not 0 <= target < classes:
        raise ValueError(f"there is no class {target}: {network.name} has {classes}, so give 0 to {classes - 1}")
    k = int(logits[0].argmax()) if target is None else target
    return _Output(logits[0, k], k)
