"""What ``torch.compile`` made of a run (``custom_imports`` of a config brings this in)."""

from mmengine.hooks import Hook
from mmengine.registry import HOOKS
from mmengine.runner import Runner
from torch._dynamo.utils import counters


@HOOKS.register_module()
class TellsWhatWasCompiled(Hook):
    """Logs, after training, how many graphs there are, and how many calls of functions they have together."""

    def after_train(self, runner: Runner) -> None:
        stats = counters["stats"]
        runner.logger.info(f"compiled: {stats['unique_graphs']} graphs, {stats['calls_captured']} calls")
