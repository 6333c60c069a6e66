"""Whether weights fit a backbone."""

import logging

from mmengine.logging import print_log
from torch import Tensor, nn


def refuse_misfit(
    model: nn.Module,
    state_dict: dict[str, Tensor],
    prefix: str,
    local_metadata: dict,
    strict: bool,
    missing_keys: list[str],
    unexpected_keys: list[str],
    error_msgs: list[str],
) -> None:
    """Refuse weights that do not fit, before one of them is loaded.

    MMEngine loads with ``strict=False`` and only warns, so a wrong checkpoint would train or test on random weights.
    Neither its loader nor torch's says here whether the caller asked for ``strict``, so this holds for both: who wants
    to load a part puts it into ``model.state_dict()`` and loads that. Output norms alone may differ, since which
    stages have one depends on the task.
    """
    ours = model.state_dict()
    theirs = {key.removeprefix(prefix): value for key, value in state_dict.items() if key.startswith(prefix)}
    missing = [key for key in ours if key not in theirs]
    unexpected = [key for key in theirs if key not in ours]
    output_norms = [key for key in (*missing, *unexpected) if key.startswith("out_norms.")]
    faults = {
        "missing": [key for key in missing if key not in output_norms],
        "unexpected": [key for key in unexpected if key not in output_norms],
        "of another shape": [
            f"{key} ({tuple(theirs[key].shape)} in the checkpoint, {tuple(value.shape)} in the model)"
            for key, value in ours.items()
            if key in theirs and theirs[key].shape != value.shape
        ],
    }
    told = [
        f"{len(keys)} {fault}: {', '.join(keys[:3])}{', ...' if len(keys) > 3 else ''}"
        for fault, keys in faults.items()
        if keys
    ]
    if told:
        whole_model = any(key.startswith("backbone.") for key in theirs)
        raise ValueError(
            f"the checkpoint does not fit {type(model).__name__} with embed_dims {model.arch.embed_dims} and depths "
            f"{model.arch.depths}; nothing was loaded. {'; '.join(told)}. "
            + (
                "It holds a whole model: load its backbone with prefix='backbone.'"
                if whole_model
                else "Give the arch that the checkpoint was made with"
            )
        )
    if output_norms:
        message = f"{type(model).__name__}: not in both the checkpoint and the model, so left alone: {', '.join(output_norms)}"
        print_log(message, "current", logging.WARNING)
