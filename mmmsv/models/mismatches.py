"""Refuse weights that do not fit a backbone."""

import logging
import re
from collections.abc import Collection, Iterable, Mapping
from typing import TYPE_CHECKING, Any

from mmengine.logging import print_log
from torch import Tensor

from mmmsv.messages import first_of, list_mismatches
from mmmsv.weight_names import find_weights, has_their_blocks, list_places, rename, without_wrappers

from .adapters import holds_adapters, list_torn
from .input_channels import FIRST_WEIGHTS, adapt_in_channels, advise_on_channels

if TYPE_CHECKING:
    from .backbone import VisionMamba


def refuse_mismatches(
    model: "VisionMamba",
    state_dict: dict[str, Tensor],
    prefix: str,
    local_metadata: dict,
    strict: bool,
    missing_keys: list[str],
    unexpected_keys: list[str],
    error_msgs: list[str],
) -> None:
    """Refuse weights that do not fit a backbone, before one of them is loaded.

    MMEngine loads with ``strict=False`` and only warns, so a wrong checkpoint would train or test on random weights.
    Neither its loader nor torch's says here whether the caller asked for ``strict``, so this holds for both: who wants
    to load a part puts it into ``model.state_dict()`` and loads that. Output norms alone may differ, since which
    stages have one depends on the task, and files of adapters, which hold nothing else on purpose
    (:func:`~mmmsv.models.adapters.list_torn`).

    Raises:
        ValueError: They do not fit.
    """
    ours = model.state_dict()
    name, first = type(model).__name__, FIRST_WEIGHTS[model.arch.stem]
    adapted = not without_wrappers(ours).keys() <= model.built.keys()
    theirs, done = _find(state_dict, prefix, ours), None
    _refuse_other_numbers(theirs, ours, name)
    if first in ours and (first in theirs or not adapted):
        theirs, done = adapt_in_channels(theirs, first, ours[first], model.adapt_in_channels)
    output_norms = [name for name in ours.keys() ^ theirs.keys() if name.startswith("out_norms.")]
    expected, given = (
        {name: value for name, value in side.items() if name not in output_norms} for side in (ours, theirs)
    )
    if adapted:
        torn = list_torn(model, model.built, given)
        expected = {name: value for name, value in expected.items() if name in given or name in torn}
    if mismatches := list_mismatches(expected, given):
        advice = _ADAPTED if adapted else _advice(expected, given, first, prefix)
        raise ValueError(
            f"the checkpoint does not fit {name} with embed_dims {model.arch.embed_dims} and depths "
            f"{model.arch.depths}; nothing was loaded. {'; '.join(mismatches)}. {advice}"
        )
    for key in [key for key in state_dict if key.startswith(prefix)]:
        del state_dict[key]
    state_dict.update({prefix + key: value for key, value in theirs.items()})
    if done:
        _log(f"{name}: {done}", ours)
    kept = ours.keys() - theirs.keys()
    if adapted and kept.difference(output_norms):
        # Loaded anew, since strict loaders would miss them.
        state_dict.update({prefix + key: ours[key] for key in kept})
        _log(f"{name}: adapters loaded, the other {len(kept)} weights stay as they are", ours)
    elif output_norms:
        names = ", ".join(sorted(output_norms))
        _log(f"{name}: not in both the checkpoint and the model, so left alone: {names}", ours, logging.WARNING)


_ADAPTED = (
    "The backbone has adapters, so the file has to hold all of its weights, or those of the adapters, whole; weights "
    "of a backbone without adapters are loaded before the adapters are put in"
)


def _log(message: str, ours: Mapping[str, Tensor], level: int = logging.INFO) -> None:
    """Log what was done, unless it was on trial: to a copy of the model without storage."""
    if not all(value.is_meta for value in ours.values()):
        print_log(message, "current", level)


def _refuse_other_numbers(theirs: Mapping[str, Any], ours: Mapping[str, Tensor], name: str) -> None:
    """Refuse integers, booleans and complex numbers as weights, which torch would convert without a word."""
    others = [
        key
        for key, value in theirs.items()
        if isinstance(value, Tensor) and key in ours and ours[key].is_floating_point() and not value.is_floating_point()
    ]
    if others:
        raise ValueError(
            f"the checkpoint holds {theirs[others[0]].dtype} in {first_of(others)}, where {name} has floating point; "
            "nothing was loaded. Give the weights as they were before they were quantized or converted"
        )


def _find(state_dict: Mapping[str, Any], prefix: str, ours: Collection[str]) -> Mapping[str, Tensor]:
    """Take the weights of a backbone out of what is loaded, under the names that it has for them."""
    theirs = {name.removeprefix(prefix): value for name, value in state_dict.items() if name.startswith(prefix)}
    if not prefix:  # what is loaded is for the backbone alone, and may be the whole content of a file
        found = find_weights(theirs)
        if len(found) > 1:
            raise ValueError(
                f"the checkpoint holds the weights of {len(found)} models ({first_of(found)}), and nothing was loaded: "
                "load those of one"
            )
        part, theirs = next(iter(found.items()), ("", theirs))
        if part:
            print_log(f"of the checkpoint, {part} is loaded", "current")
    return rename(theirs, ours)


def _advice(expected: Mapping[str, Tensor], given: Mapping[str, Tensor], first: str, prefix: str) -> str:
    """Say what weights are that do not fit, and what to do."""
    authors = (
        "give it as authors://PATH, as in --checkpoint authors://PATH, load it with "
        "init_cfg=dict(type='mmmsv.AuthorsCheckpoint', checkpoint=...), or convert it with tools/convert_checkpoint.py"
    )
    if has_their_blocks(given):
        return f"It has the names of the authors of MSVMamba and VMamba: {authors}"
    if not given:
        nothing = "It holds nothing for this backbone"
        if prefix:
            nothing = (
                f"It holds nothing at {prefix!r}: if it has the backbone at another place, as in model.backbone., load "
                "that with the backbone's init_cfg=dict(type='Pretrained', checkpoint=..., prefix='model.backbone.')"
            )
        return f"{nothing}. If it is a file of the authors of MSVMamba or VMamba, {authors}"
    if not any(isinstance(value, Tensor) for value in given.values()):
        return f"It holds no weights, but {first_of(given)}: give a file that holds the model's state_dict()"
    outer = list_places(given)
    if outer and "" not in outer:
        places = " or ".join(f"prefix={place!r}" for place in outer)
        return f"It holds a whole model: load its backbone with {places}"
    if holds_adapters(expected, given):
        return (
            "It holds adapters, or other layers in the place of the backbone's: put the same ones into the model "
            "before it is loaded, or merge them into the weights before it is saved"
        )
    if not outer:
        return "It is of another kind of model, or lacks the blocks"
    if advice := advise_on_channels(expected, given, first):
        return advice
    lacking, extra = expected.keys() - given.keys(), given.keys() - expected.keys()
    blocks = _blocks(given)
    tensors = {name: value for name, value in given.items() if name in expected and isinstance(value, Tensor)}
    if all(value.shape == expected[name].shape for name, value in tensors.items()):
        same_blocks = blocks == _blocks(expected)
        if any(names != blocks[0] for names in blocks) or (same_blocks and not extra):
            return "It is incomplete, or was changed after it was written: get it again"
        if same_blocks and not lacking:
            return "Take out of it what is not of the backbone"
    return "Give the arch that the checkpoint was made with"


def _blocks(names: Iterable[str]) -> list[set[str]]:
    """List the names of the weights of each block, in it."""
    blocks: dict[str, set[str]] = {}
    for name in sorted(names):
        if match := re.match(r"stages\.\d+\.blocks\.\d+\.", name):
            blocks.setdefault(match[0], set()).add(name.removeprefix(match[0]))
    return [*blocks.values()]
