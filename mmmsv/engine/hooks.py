"""Hooks: a checkpoint that does not fit is an error, and a resumed run repeats an unbroken one."""

import copy
import random
from collections import OrderedDict

import numpy as np
import torch
from mmengine.dist import get_rank
from mmengine.hooks import Hook
from mmengine.runner import BaseLoop, Runner
from torch import Tensor, nn

from mmmsv.messages import first_of
from mmmsv.registry import HOOKS

from .wrappers import unwrap


@HOOKS.register_module()
class SeedEpochHook(Hook):
    """Seed Python, NumPy and PyTorch at the start of each training epoch.

    MMEngine saves weights, optimizer and schedule in a checkpoint, but no state of the random number generators. With
    this hook they depend on the seed of the run and the iteration reached, and on the rank if ``diff_rank_seed`` is
    set in ``randomness``: an epoch after ``--resume`` draws the same augmentations, samples and dropped paths as it
    would have drawn in an unbroken run.

    What it cannot do: reach data loader workers that stay alive between epochs (``persistent_workers=True``); they
    draw from generators of their own, which a resumed run starts anew. ``num_workers=0`` has none of them. A run
    resumed inside an epoch, or in an iteration-based loop, is seeded where it goes on, and so differs from an unbroken
    one.
    """

    def before_train_epoch(self, runner: Runner) -> None:
        rank = get_rank() if runner.cfg.get("randomness", {}).get("diff_rank_seed", False) else 0
        # A hash of the three: adding them up would give iteration 1 of rank 0 the numbers of iteration 0 of rank 1.
        seed = int(np.random.SeedSequence((runner.seed, runner.iter, rank)).generate_state(1)[0])
        random.seed(seed)
        np.random.seed(seed)
        torch.manual_seed(seed)


@HOOKS.register_module()
class CheckpointFitHook(Hook):
    """Refuse a checkpoint that does not fit the model, when testing and when resuming.

    MMEngine logs a warning and goes on with random weights. Fine-tuning (``load_from`` without ``resume``) is left to
    MMEngine, because there heads may differ. It has to come before hooks that load weights themselves, as ``EMAHook``
    does: ``priority='HIGH'``.

    Raises:
        ValueError: Tensors are missing, unexpected or of another shape; the model is as it was.
    """

    def after_load_checkpoint(self, runner: Runner, checkpoint: dict) -> None:
        # Both loops are configs until train() or test() builds the one that it runs.
        training = isinstance(runner._train_loop, BaseLoop)
        if training and not runner._resume:
            return
        model = unwrap(runner.model)
        if faults := misfits(model, checkpoint.get("state_dict", checkpoint)):
            task = "resumed from" if training else "tested"
            raise ValueError(
                f"this checkpoint does not fit {type(model).__name__} and cannot be {task}; nothing was loaded:\n"
                + "\n".join(f"  {fault}" for fault in faults)
                + "\nGive the config that the checkpoint was trained with (arch, channels, number of classes)."
            )


def misfits(model: nn.Module, state_dict: dict[str, Tensor], shown: int = 3) -> list[str]:
    """List what is wrong with ``state_dict`` for ``model``; the model is not changed.

    The weights are loaded into a copy of the model without storage, so that whatever the model itself converts at
    loading is converted here too.

    Args:
        model: The model.
        state_dict: Its supposed weights; a ``module.`` before all names is ignored, as in MMEngine.
        shown: Names told of each kind of fault.

    Returns:
        One line for each kind of fault (missing, unexpected, of another shape): how many, and the first names.
    """
    tensors = [*model.parameters(), *model.buffers()]
    storageless = {id(tensor): torch.empty_like(tensor, device="meta") for tensor in tensors}
    trial = copy.deepcopy(model, storageless)
    weights = OrderedDict(
        (name.removeprefix("module."), value.to("meta") if isinstance(value, Tensor) else value)
        for name, value in state_dict.items()
    )
    # The versions of the modules that wrote it, by which some of them rename what they find.
    weights._metadata = getattr(state_dict, "_metadata", {})
    try:
        trial.load_state_dict(weights)
    except RuntimeError as error:
        # PyTorch writes a headline, one line for all missing names, one for all unexpected ones, one for each shape.
        lines = [line.strip() for line in str(error).split("\n\t")[1:]]
        shapes = [line for line in lines if line.startswith("size mismatch")]
        return [first_of(line.split(", "), shown) for line in lines if line not in shapes] + (
            [first_of(shapes, shown)] if shapes else []
        )
    return []
