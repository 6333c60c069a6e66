"""Refuse weights that do not fit a backbone."""

import logging
from collections.abc import Mapping
from typing import TYPE_CHECKING

from mmengine.logging import print_log
from torch import Tensor

from mmmsv.messages import list_mismatches

from .adapters import holds_adapters, list_torn

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
    theirs = {name.removeprefix(prefix): value for name, value in state_dict.items() if name.startswith(prefix)}
    output_norms = [name for name in ours.keys() ^ theirs.keys() if name.startswith("out_norms.")]
    expected, given = (
        {name: value for name, value in side.items() if name not in output_norms} for side in (ours, theirs)
    )
    adapted = not ours.keys() <= model.built.keys()
    if adapted:
        torn = list_torn(model, model.built, given)
        expected = {name: value for name, value in expected.items() if name in given or name in torn}
    if mismatches := list_mismatches(expected, given):
        advice = _ADAPTED if adapted else _advice(model, state_dict, theirs)
        raise ValueError(
            f"the checkpoint does not fit {type(model).__name__} with embed_dims {model.arch.embed_dims} and depths "
            f"{model.arch.depths}; nothing was loaded. {'; '.join(mismatches)}. {advice}"
        )
    name = type(model).__name__
    kept = ours.keys() - theirs.keys()
    if adapted and kept.difference(output_norms):
        print_log(f"{name}: adapters loaded, the other {len(kept)} weights stay as they are", "current")
    elif output_norms:
        names = ", ".join(sorted(output_norms))
        message = f"{name}: not in both the checkpoint and the model, so left alone: {names}"
        print_log(message, "current", logging.WARNING)


_ADAPTED = (
    "The backbone has adapters, so the file has to hold all of its weights, or those of the adapters, whole; weights "
    "of a backbone without adapters are loaded before the adapters are put in"
)


def _advice(model: "VisionMamba", whole: Mapping[str, object], theirs: Mapping[str, object]) -> str:
    authors = (
        "load it with init_cfg=dict(type='mmmsv.AuthorsCheckpoint', checkpoint=...), or convert it with "
        "tools/convert_checkpoint.py"
    )
    # A classifier's file of the authors has its weights under "model", where MMEngine does not look.
    names = {*whole, *(name for value in whole.values() if isinstance(value, Mapping) for name in map(str, value))}
    if any("layers.0.blocks.0.op." in name for name in names):
        return f"It has the names of the authors of MSVMamba and VMamba: {authors}"
    if not theirs:
        return f"It holds nothing for this backbone. If it is a file of the authors of MSVMamba or VMamba, {authors}"
    if any(name.startswith("backbone.") for name in theirs):
        return "It holds a whole model: load its backbone with prefix='backbone.'"
    if holds_adapters(model.built, theirs):
        return (
            "It holds adapters, or other layers in the place of the backbone's: put the same ones into the model "
            "before it is loaded, or merge them into the weights before it is saved"
        )
    return "Give the arch that the checkpoint was made with"
