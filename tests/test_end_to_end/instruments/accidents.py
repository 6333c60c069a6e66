"""Hooks that kill the process they run in, at a chosen moment (``custom_imports`` of a config brings them in)."""

import os
import resource
import signal

from mmengine.hooks import Hook
from mmengine.registry import HOOKS
from mmengine.runner import Runner


def _die(*_: object) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


@HOOKS.register_module()
class KilledInEpoch(Hook):
    """SIGKILL when ``iteration`` iterations are done."""

    def __init__(self, iteration: int) -> None:
        self.iteration = iteration

    def after_train_iter(self, runner: Runner, **_: object) -> None:
        if runner.iter + 1 == self.iteration:
            _die()


@HOOKS.register_module()
class KilledWhileSaving(Hook):
    """SIGKILL when ``size`` bytes of the checkpoint of ``epoch`` are written; the kernel counts them."""

    priority = "LOWEST"

    def __init__(self, epoch: int, size: int) -> None:
        self.epoch, self.size = epoch, size

    def before_save_checkpoint(self, runner: Runner, checkpoint: dict) -> None:
        if checkpoint["meta"]["epoch"] == self.epoch:
            signal.signal(signal.SIGXFSZ, _die)
            resource.setrlimit(resource.RLIMIT_FSIZE, (self.size, resource.RLIM_INFINITY))
