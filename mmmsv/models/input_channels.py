"""Fit the first weight of a checkpoint to images of other channels than those that it was made with."""

import math
from collections.abc import Mapping
from typing import Any, Literal, TypeGuard

from torch import Tensor

from mmmsv.messages import list_mismatches

AdaptInChannels = Literal["init", "repeat", "average"]

# The first weight, by the arch's stem.
FIRST_WEIGHTS = {"patch": "stem.conv.weight", "conv": "stem.conv1.weight"}


def adapt_in_channels(
    weights: Mapping[str, Any], name: str, own: Tensor, how: AdaptInChannels | None
) -> tuple[Mapping[str, Any], str | None]:
    """Adapt the first weight among some, if it differs from the model's in its input channels and in nothing else.

    Args:
        weights: By name.
        name: Of the first weight among them.
        own: The first weight of the model, ``(out, in_channels, kernel, kernel)``.
        how: ``'init'`` takes that of the model, also if there is none among the weights. ``'repeat'`` repeats the given
            one over the channels (for one channel, sums it), and ``'average'`` gives each channel the mean; both scale
            by given / wanted, so that an image of equal channels gives the same. None leaves the weights alone.

    Returns:
        The weights, and what was done in one phrase, or None if nothing was.

    Source:
        ``adapt_input_conv`` of timm, for ``'repeat'`` and images of 3 channels.
    """
    given = weights.get(name)
    if given is None and how == "init":
        return {**weights, name: own}, f"{name} is not in the checkpoint, and left as initialised"
    if how is None or not _differs_in_channels(given, own):
        return weights, None
    channels, wanted = given.shape[1], own.shape[1]
    done = f"{name} has {channels} input channels in the checkpoint and {wanted} in the model: "
    if how == "init":
        return {**weights, name: own}, f"{done}left as initialised"
    if how == "average" or wanted == 1:
        adapted = given.float().mean(1, keepdim=True).expand(-1, wanted, -1, -1)
    else:
        adapted = given.float().repeat(1, math.ceil(wanted / channels), 1, 1)[:, :wanted]
    verb = "averaged" if how == "average" else "summed" if wanted == 1 else "repeated"
    scale = "" if verb == "summed" else f" and scaled by {channels}/{wanted}"
    return {**weights, name: (adapted * (channels / wanted)).to(given.dtype)}, f"{done}{verb} over them{scale}"


def advise_on_channels(expected: Mapping[str, Tensor], given: Mapping[str, Any], name: str) -> str | None:
    """Say what to do about weights of which the first alone is missing, or differs in its input channels.

    Args:
        expected: Names and tensors of the model.
        given: Names and tensors of the weights.
        name: Of the first weight.

    Returns:
        None, if something else differs, too.
    """
    if name not in expected or list_mismatches(_without(name, expected), _without(name, given)):
        return None
    if name not in given:
        return (
            "It lacks the first weight alone; to begin with the others, adapt_in_channels='init' leaves that of the "
            "model as initialised"
        )
    if not _differs_in_channels(given[name], expected[name]):
        return None
    return (
        f"It was made with in_channels={given[name].shape[1]}: give the model the same; to begin with its weights, "
        "adapt_in_channels='repeat', 'average' or 'init'"
    )


def _without(name: str, weights: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in weights.items() if key != name}


def _differs_in_channels(given: object, own: Tensor) -> TypeGuard[Tensor]:
    """Whether a weight is that of a convolution like the model's, but for its input channels."""
    return (
        isinstance(given, Tensor)
        and given.dim() == own.dim()
        and 0 < given.shape[1] != own.shape[1]
        and given.shape[:1] + given.shape[2:] == own.shape[:1] + own.shape[2:]
    )
