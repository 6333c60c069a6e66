"""Two processes without a GPU, and what they lost (``custom_imports`` of a config brings this in).

MMEngine's ``--launcher pytorch`` asks for a GPU unless the process group is there before it.
"""

import json
import os
from pathlib import Path

import torch
from mmengine.dist import get_rank
from mmengine.hooks import Hook
from mmengine.registry import HOOKS
from mmengine.runner import Runner

if "RANK" in os.environ:
    torch.distributed.init_process_group("gloo")


@HOOKS.register_module()
class LossRecorder(Hook):
    """Leave the losses of each iteration in ``losses_RANK.json``: MMEngine logs those of the first process only."""

    def before_train(self, runner: Runner) -> None:
        self.losses = []

    def after_train_iter(self, runner: Runner, batch_idx: int, data_batch: object, outputs: dict) -> None:
        self.losses.append({name: float(value) for name, value in outputs.items() if "loss" in name})

    def after_train(self, runner: Runner) -> None:
        Path(runner.work_dir, f"losses_{get_rank()}.json").write_text(json.dumps(self.losses))
