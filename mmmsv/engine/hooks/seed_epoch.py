"""Make a resumed run repeat an unbroken one."""

import random

import numpy as np
import torch
from mmengine.dist import get_rank
from mmengine.hooks import Hook
from mmengine.runner import Runner

from mmmsv.registry import HOOKS


@HOOKS.register_module()
class SeedEpochHook(Hook):
    """Seed Python, NumPy and PyTorch at the start of each training epoch.

    MMEngine saves weights, optimizer and schedule in a checkpoint, but no state of the random number generators. With
    this hook they depend on the seed of the run and the iteration reached, and on the rank if ``diff_rank_seed`` is
    set in ``randomness``: an epoch after ``--resume`` draws the same augmentations, samples and dropped paths as it
    would have drawn in an unbroken run.

    What it cannot do: reach data loader workers that stay alive between epochs (``persistent_workers=True``); they
    draw from generators of their own, which a resumed run restarts. ``num_workers=0`` has none of them. A run
    resumed in an epoch, or in an iteration-based loop, is seeded where it goes on, so differs from an unbroken one.
    """

    def before_train_epoch(self, runner: Runner) -> None:
        rank = get_rank() if runner.cfg.get("randomness", {}).get("diff_rank_seed", False) else 0
        # A hash of the three: adding them up would give iteration 1 of rank 0 the numbers of iteration 0 of rank 1.
        seed = int(np.random.SeedSequence((runner.seed, runner.iter, rank)).generate_state(1)[0])
        random.seed(seed)
        np.random.seed(seed)
        torch.manual_seed(seed)
