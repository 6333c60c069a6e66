"""Check that the data is there before MMEngine's loops read it.

``type='mmmsv.TestLoop'`` and the like in ``train_cfg``, ``val_cfg`` and ``test_cfg``. The check sits in the loops
because each builds exactly the one data loader that it will use, in mmdet, mmseg and mmpretrain; a runner class
of our own (``runner_type``) would not do, since the test script of mmseg ignores it.
"""

import json
import os
import os.path as osp
from collections.abc import Iterator, Mapping, Sequence

from mmengine import runner as mmengine_runner
from mmengine.runner import BaseLoop, Runner
from torch.utils.data import DataLoader

from mmmsv.registry import LOOPS


class _LooksForData(BaseLoop):
    """Check the data before a loop of MMEngine is built; a mixin that passes the loop's other arguments on.

    Raises:
        FileNotFoundError: A path of the data set is missing, or an annotation file of the evaluator. The message holds
            the absolute path, for which loop it is, and ``data_source`` of the config, which says how to get the data.
        ValueError: An annotation file is no whole JSON, as after a download that was cut off.
    """

    def __init__(self, runner: Runner, dataloader: DataLoader | dict, *args: object, **kwargs: object) -> None:
        name = type(self).__name__
        source = runner.cfg.get("data_source", "the config names no data_source that would say where to get it")
        configs = _configs(dataloader if isinstance(dataloader, DataLoader) else dataloader["dataset"])
        configs += _configs(kwargs.get("evaluator"))
        lacks = (
            "{}: the data set lacks {} (relative paths in a config start from the current directory). How to get it: {}"
        )
        if missing := missing_paths(*configs):
            raise FileNotFoundError(lacks.format(name, ", ".join(missing), source))
        try:
            super().__init__(runner, dataloader, *args, **kwargs)
        except FileNotFoundError as error:
            # Paths that a data set makes by itself, as ImageNet's folder of a split.
            if error.filename is None:
                raise
            raise FileNotFoundError(lacks.format(name, osp.abspath(error.filename), source)) from error
        except (json.JSONDecodeError, UnicodeDecodeError) as error:
            files = {osp.abspath(path) for config in configs for path in _paths(config) if osp.isfile(path)}
            if not files:
                raise
            raise ValueError(
                f"{name}: what is read of the data set, such as {' or '.join(sorted(files))}, is cut off or damaged "
                f"({error}). How to get it: {source}"
            ) from error


@LOOPS.register_module()
class EpochBasedTrainLoop(_LooksForData, mmengine_runner.EpochBasedTrainLoop):
    """MMEngine's ``EpochBasedTrainLoop``, after a check that its data is there."""


@LOOPS.register_module()
class IterBasedTrainLoop(_LooksForData, mmengine_runner.IterBasedTrainLoop):
    """MMEngine's ``IterBasedTrainLoop``, after a check that its data is there."""


@LOOPS.register_module()
class ValLoop(_LooksForData, mmengine_runner.ValLoop):
    """MMEngine's ``ValLoop``, after a check that its data is there."""


@LOOPS.register_module()
class TestLoop(_LooksForData, mmengine_runner.TestLoop):
    """MMEngine's ``TestLoop``, after a check that its data is there."""


def _configs(part: object) -> list[Mapping]:
    """List the configs in a data set or evaluator, of which there are none once it was built."""
    return [config for config in (part if isinstance(part, Sequence) else [part]) if isinstance(config, Mapping)]


def missing_paths(*configs: Mapping) -> list[str]:
    """List the absolute paths that the configs of data sets and metrics name and that are not there.

    Args:
        configs: Each of a data set, of a wrapper (``dataset`` or ``datasets`` inside), or of a metric. Looked for are
            ``data_root``, ``ann_file`` and ``data_prefix``; an empty folder counts as missing, and paths on a remote
            storage are taken on trust.

    Returns:
        Each path once; of a missing folder only the folder, not what should be in it.
    """
    paths = (path for config in configs for path in _paths(config))
    missing = {osp.abspath(path) for path in paths if "://" not in path and not _holds_something(path)}
    return sorted(path for path in missing if not any(path.startswith(folder + osp.sep) for folder in missing))


def _holds_something(path: str) -> bool:
    if not osp.isdir(path):
        return osp.exists(path)
    with os.scandir(path) as entries:
        return next(entries, None) is not None


def _paths(dataset: Mapping) -> Iterator[str]:
    if "dataset" in dataset:
        yield from _paths(dataset["dataset"])
    for inner in dataset.get("datasets", []):
        yield from _paths(inner)
    root = dataset.get("data_root") or ""
    prefix = dataset.get("data_prefix") or {}
    if (dataset.get("backend_args") or {}).get("backend", "local") != "local":
        return  # what looks like a local path may be mapped to a remote one
    files = dataset.get("ann_file")
    names = [*(files if isinstance(files, (list, tuple)) else [files])]
    names += prefix.values() if isinstance(prefix, dict) else [prefix]
    # MMEngine joins them in the same way.
    yield from (path for path in (root, *(osp.join(root, name) for name in names if name)) if path)
