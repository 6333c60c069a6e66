"""Refuse a checkpoint that does not fit the model."""

import copy
from collections import OrderedDict
from collections.abc import Mapping

import torch
from mmengine.hooks import Hook
from mmengine.logging import print_log
from mmengine.runner import BaseLoop, Runner
from torch import Tensor, nn

from mmmsv.messages import first_of, list_mismatches
from mmmsv.registry import HOOKS
from mmmsv.weight_names import rename

from .unwrap import unwrap


@HOOKS.register_module()
class CheckpointFitHook(Hook):
    """Refuse a checkpoint that does not fit the model, when testing and when resuming.

    MMEngine logs a warning and goes on with random weights. What wrappers of torch have added to the names
    (``module.``, ``_orig_mod.``) is taken off first, or put on, as the model has it, and the log says so. Fine-tuning
    (``load_from`` without ``resume``) is left to MMEngine, because there heads may differ; there alone the backbone's
    ``adapt_in_channels`` acts. It has to come before hooks that load weights themselves, as ``EMAHook`` does:
    ``priority='HIGH'``.

    Raises:
        ValueError: Tensors are missing, unexpected or of another shape; the model is as it was.
    """

    def after_load_checkpoint(self, runner: Runner, checkpoint: dict) -> None:
        model = unwrap(runner.model)
        names = model.state_dict().keys()
        weights = checkpoint.get("state_dict", checkpoint) if isinstance(checkpoint, Mapping) else checkpoint
        if not isinstance(weights, Mapping):
            raise ValueError(f"this checkpoint holds a {type(weights).__name__}, expected weights by name")
        given, weights = weights, rename(weights, names, only_torch="pytorch-lightning_version" not in checkpoint)
        if weights is not given:
            changed = [name for name in given if name not in weights]
            print_log(f"what wrappers add to names is not as in the model, and changed: {first_of(changed)}", "current")
        # MMEngine takes one "module." off each name, which may be the name of a part of the model.
        if any(name.startswith("module.") for name in names):
            weights = _like(weights, {f"module.{n}" if n in names else n: value for n, value in weights.items()})
        if weights is not checkpoint:
            checkpoint["state_dict"] = weights
        # Both loops are configs until train() or test() builds the one that it runs.
        training = isinstance(runner._train_loop, BaseLoop)
        if training and not runner._resume:
            return
        if mismatches := list_loading_mismatches(model, weights):
            task = "resumed from" if training else "tested"
            raise ValueError(
                f"this checkpoint does not fit {type(model).__name__} and cannot be {task}; nothing was loaded:\n"
                + "\n".join(f"  {mismatch}" for mismatch in mismatches)
                + "\nGive the config that the checkpoint was trained with (arch, channels, number of classes)."
            )
        if training and "epoch" not in (checkpoint.get("meta") or {}):
            raise ValueError(
                "this checkpoint holds weights and not the state of a run, so none can be resumed from it; nothing was "
                "loaded. load_from without resume begins a new run with its weights"
            )


def list_loading_mismatches(model: nn.Module, state_dict: Mapping[str, Tensor]) -> list[str]:
    """List why weights would not load into a model; the model is not changed.

    The weights are loaded into a copy of the model without storage, so that whatever the model itself converts at
    loading is converted here too; but for a backbone's ``adapt_in_channels``, which is for models that begin.

    Args:
        model: The model.
        state_dict: Its supposed weights; a ``module.`` before all names is ignored, as in MMEngine.

    Returns:
        A phrase for each kind of mismatch (missing, unexpected, of another shape); empty where the weights fit.
    """
    tensors = dict(model.named_parameters(remove_duplicate=False)) | dict(model.named_buffers(remove_duplicate=False))
    storageless = {
        id(tensor): torch.empty_like(tensor, device="meta").requires_grad_(tensor.requires_grad)
        for tensor in tensors.values()
    }
    trial = copy.deepcopy(model, dict(storageless))
    for module in trial.modules():
        if "adapt_in_channels" in vars(module):
            vars(module)["adapt_in_channels"] = None
    weights = _like(
        state_dict,
        {
            name.removeprefix("module."): value.to("meta") if isinstance(value, Tensor) else value
            for name, value in state_dict.items()
        },
    )
    names = []
    trial.register_load_state_dict_post_hook(lambda _, missing_and_unexpected: names.append(missing_and_unexpected))
    try:
        trial.load_state_dict(weights)
    except RuntimeError as error:
        missing, unexpected = names[0] if names else ([], [])
        others = tensors.keys() - {*missing, *unexpected}
        # What was loaded was written to, which PyTorch counts in the version of a tensor.
        refused = [
            name
            for name, value in weights.items()
            if name in others and isinstance(value, Tensor) and not storageless[id(tensors[name])]._version
        ]
        none = torch.empty(0)  # of what is missing and unexpected only the names count
        expected = {name: tensors.get(name, none) for name in (*missing, *refused)}
        given = {name: weights.get(name, none) for name in (*unexpected, *refused)}
        return list_mismatches(expected, given) or [str(error)]
    return []


def _like(state_dict: Mapping[str, Tensor], weights: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
    """Give weights the versions of the modules that wrote a state dict, by which some of them rename what they find."""
    versioned = OrderedDict(weights)
    # pyrefly: ignore[missing-attribute]: torch sets it on an OrderedDict, too
    versioned._metadata = getattr(state_dict, "_metadata", {})
    return versioned
