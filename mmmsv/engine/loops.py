"""MMEngine's loops, which first look for the data that they are about to read.

``type='mmmsv.TestLoop'`` and the like in ``train_cfg``, ``val_cfg`` and ``test_cfg``. The check sits in the loops
because each builds exactly the one data loader that it will use, in mmdet, mmseg and mmpretrain alike; a runner class
of our own (``runner_type``) would not do, since the test script of mmseg ignores it.
"""

import os.path as osp
from collections.abc import Iterator

from mmengine import runner as mmengine_runner
from mmengine.runner import Runner
from torch.utils.data import DataLoader

from mmmsv.registry import LOOPS


class _LooksForData:
    """Mixin in front of a loop of MMEngine; what else the loop takes is passed on.

    Raises:
        FileNotFoundError: A path of the data set is missing. The message holds the absolute path, for which loop it
            is, and ``data_source`` of the config, which says how to get the data.
    """

    def __init__(self, runner: Runner, dataloader: DataLoader | dict, *args: object, **kwargs: object) -> None:
        missing = missing_paths(dataloader["dataset"]) if _is_config(dataloader) else []
        if missing:
            source = runner.cfg.get("data_source", "the config names no data_source that would say where to get it")
            raise FileNotFoundError(
                f"{type(self).__name__}: the data set lacks {', '.join(missing)} (relative paths in a config start "
                f"from the current directory). How to get it: {source}"
            )
        super().__init__(runner, dataloader, *args, **kwargs)


@LOOPS.register_module()
class EpochBasedTrainLoop(_LooksForData, mmengine_runner.EpochBasedTrainLoop):
    """MMEngine's ``EpochBasedTrainLoop`` behind a look for the data."""


@LOOPS.register_module()
class IterBasedTrainLoop(_LooksForData, mmengine_runner.IterBasedTrainLoop):
    """MMEngine's ``IterBasedTrainLoop`` behind a look for the data."""


@LOOPS.register_module()
class ValLoop(_LooksForData, mmengine_runner.ValLoop):
    """MMEngine's ``ValLoop`` behind a look for the data."""


@LOOPS.register_module()
class TestLoop(_LooksForData, mmengine_runner.TestLoop):
    """MMEngine's ``TestLoop`` behind a look for the data."""


def _is_config(dataloader: DataLoader | dict) -> bool:
    return isinstance(dataloader, dict) and isinstance(dataloader["dataset"], dict)


def missing_paths(dataset: dict) -> list[str]:
    """List the absolute paths that the config of a data set names and that are not there.

    Args:
        dataset: Config of a data set, or of a wrapper (``dataset`` or ``datasets`` inside). Its ``data_root``,
            ``ann_file`` and ``data_prefix`` are looked for; paths on a remote storage are taken on trust.

    Returns:
        Each path once; of a missing folder only the folder, not what should be in it.
    """
    missing = {osp.abspath(path) for path in _paths(dataset) if "://" not in path and not osp.exists(path)}
    return sorted(path for path in missing if not any(path.startswith(folder + osp.sep) for folder in missing))


def _paths(dataset: dict) -> Iterator[str]:
    if "dataset" in dataset:
        yield from _paths(dataset["dataset"])
    for inner in dataset.get("datasets", []):
        yield from _paths(inner)
    root = dataset.get("data_root") or ""
    prefix = dataset.get("data_prefix") or {}
    names = [dataset.get("ann_file"), *(prefix.values() if isinstance(prefix, dict) else [prefix])]
    # MMEngine joins them in the same way.
    yield from (path for path in (root, *(osp.join(root, name) for name in names if name)) if path)
