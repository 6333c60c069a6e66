"""Refuse weights that do not fit a backbone."""

import logging
from collections.abc import Mapping
from typing import TYPE_CHECKING

from mmengine.logging import print_log
from torch import Tensor

from mmmsv.messages import list_mismatches

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
    stages have one depends on the task.

    Raises:
        ValueError: They do not fit.
    """
    ours = model.state_dict()
    theirs = {name.removeprefix(prefix): value for name, value in state_dict.items() if name.startswith(prefix)}
    output_norms = [name for name in ours.keys() ^ theirs.keys() if name.startswith("out_norms.")]
    expected, given = (
        {name: value for name, value in side.items() if name not in output_norms} for side in (ours, theirs)
    )
    if mismatches := list_mismatches(expected, given):
        raise ValueError(
            f"the checkpoint does not fit {type(model).__name__} with embed_dims {model.arch.embed_dims} and depths "
            f"{model.arch.depths}; nothing was loaded. {'; '.join(mismatches)}. {_advice(state_dict, theirs)}"
        )
    if output_norms:
        names = ", ".join(sorted(output_norms))
        message = f"{type(model).__name__}: not in both the checkpoint and the model, so left alone: {names}"
        print_log(message, "current", logging.WARNING)


def _advice(whole: Mapping[str, object], theirs: Mapping[str, object]) -> str:
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
    return "Give the arch that the checkpoint was made with"
