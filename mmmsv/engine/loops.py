"""Say what is missing, and how to get it, where MMEngine's loops do not find their data.

``type='mmmsv.TestLoop'`` and the like in ``train_cfg``, ``val_cfg`` and ``test_cfg``. The check sits in the loops
because each builds exactly the one data loader that it will use, in mmdet, mmseg and mmpretrain; a runner class
of our own (``runner_type``) would not do, since the test script of mmseg ignores it.
"""

import inspect
import json
import os
import os.path as osp
from collections.abc import Iterator, Mapping, Sequence

from mmengine import runner as mmengine_runner
from mmengine.dataset import BaseDataset
from mmengine.registry import DATASETS
from mmengine.runner import BaseLoop, Runner
from torch.utils.data import DataLoader

from mmmsv.registry import LOOPS

from .config_types import type_name

# Steps of pipelines in all three libraries that open a file, and the key of a sample that holds its path.
_READERS = {"LoadImageFromFile": "img_path", "LoadAnnotations": "seg_map_path"}


class _LooksForData(BaseLoop):
    """Look for the data while a loop of MMEngine is built; a mixin that passes the loop's arguments on.

    The data set is built first: some fetch or make their files then. If that fails, or if the first sample is not where
    its pipeline will look for it, what is missing is reported, before anything is trained or tested.

    Raises:
        FileNotFoundError: A path of the data set is missing, or an annotation file of the evaluator. The message holds
            the absolute path, for which loop it is, and the entry of ``data_source`` in the config for the type of this
            data set, which says how to get the data.
        ValueError: An annotation file is no whole JSON, as after a download that was cut off.
        TypeError: ``data_source`` of the config is neither a sentence nor a dict of sentences.
    """

    def __init__(self, runner: Runner, dataloader: DataLoader | dict, *args: object, **kwargs: object) -> None:
        given = [] if isinstance(dataloader, DataLoader) else _configs(dataloader.get("dataset"))
        datasets = [leaf for config in given for leaf in _leaves(config)]
        metrics = _configs(kwargs.get("evaluator"))
        sources = _checked_sources(runner.cfg.get("data_source", {}))
        name = type(self).__name__
        try:
            super().__init__(runner, dataloader, *args, **kwargs)
        except (json.JSONDecodeError, UnicodeDecodeError) as error:
            files = {osp.abspath(path) for config in (*datasets, *metrics) for path in _paths(config)}
            files = sorted(filter(osp.isfile, files))
            if not files:
                raise
            raise ValueError(
                f"{name}: what is read of the data set, such as {' or '.join(files)}, is cut off or damaged ({error}). "
                f"How to get it: {how_to_get(datasets, sources)}"
            ) from error
        except (AssertionError, FileNotFoundError, NotADirectoryError, RuntimeError, ValueError) as error:
            missing = missing_paths(*datasets, *metrics)
            if not missing and isinstance(error, OSError) and error.filename is not None:
                # A path that a data set makes by itself.
                missing = [error.filename if "://" in error.filename else osp.abspath(error.filename)]
            if not missing:
                raise
            raise FileNotFoundError(_lacks(name, missing, datasets, sources)) from error
        if _lacks_first_sample(self.dataloader.dataset) and (missing := missing_paths(*datasets)):
            raise FileNotFoundError(_lacks(name, missing, datasets, sources))


@LOOPS.register_module()
class EpochBasedTrainLoop(_LooksForData, mmengine_runner.EpochBasedTrainLoop):
    """MMEngine's ``EpochBasedTrainLoop``, which says what is missing where it does not find its data."""


@LOOPS.register_module()
class IterBasedTrainLoop(_LooksForData, mmengine_runner.IterBasedTrainLoop):
    """MMEngine's ``IterBasedTrainLoop``, which says what is missing where it does not find its data."""


@LOOPS.register_module()
class ValLoop(_LooksForData, mmengine_runner.ValLoop):
    """MMEngine's ``ValLoop``, which says what is missing where it does not find its data."""


@LOOPS.register_module()
class TestLoop(_LooksForData, mmengine_runner.TestLoop):
    """MMEngine's ``TestLoop``, which says what is missing where it does not find its data."""


def missing_paths(*configs: Mapping) -> list[str]:
    """List the absolute paths that the configs of data sets and metrics name and that are not there.

    Args:
        configs: Each of a data set, of a wrapper (``dataset`` or ``datasets`` inside), or of a metric. Looked for are
            ``ann_file`` and ``data_prefix``, and ``data_root`` where they begin there; an empty folder counts as
            missing, and paths on a remote storage are taken on trust.

    Returns:
        Each path once; of a missing folder only the folder, not what should be in it.
    """
    paths = (path for config in configs for leaf in _leaves(config) for path in _paths(leaf))
    missing = {osp.abspath(path) for path in paths if not _holds_something(path)}
    return sorted(path for path in missing if not any(path.startswith(folder + osp.sep) for folder in missing))


def how_to_get(datasets: Sequence[Mapping], sources: Mapping[str, str] | str) -> str:
    """Return how to get data sets.

    Args:
        datasets: Their configs.
        sources: ``data_source`` of the config: for types of data sets, how to get that one; or one sentence for all.

    Returns:
        The entries for their types, but none for a data set that has other classes than its type; or that there is
        none.
    """
    if isinstance(sources, str):
        return sources
    entries, others = {}, {}
    for dataset in datasets:
        kind, cls = type_name(dataset), _class(dataset)
        if kind in sources and not _has_own_classes(dataset, cls):
            entries[sources[kind]] = None
        elif cls is not None and "download" in inspect.signature(cls).parameters:
            others[f"{kind} fetches itself with download=True"] = None
        else:
            others[f"data_source of the config has no entry for this {kind}"] = None
    return "; ".join([*entries, *others]) or "the config names no data set"


def _lacks(loop: str, missing: Sequence[str], datasets: Sequence[Mapping], sources: Mapping[str, str] | str) -> str:
    """Return the message; those of several data sets that lack nothing themselves need no hint."""
    lacking = [dataset for dataset in datasets if missing_paths(dataset)] or datasets
    return (
        f"{loop}: the data set lacks {', '.join(missing)} (relative paths in a config start from the current "
        f"directory). How to get it: {how_to_get(lacking, sources)}"
    )


def _checked_sources(sources: object) -> Mapping[str, str] | str:
    if isinstance(sources, str):
        return sources
    if isinstance(sources, Mapping) and all(isinstance(part, str) for pair in sources.items() for part in pair):
        return sources
    raise TypeError(
        f"data_source of the config is {sources!r:.200}, expected a sentence that says how to get the data, or a dict "
        "of such sentences by type of data set"
    )


def _configs(part: object) -> list[Mapping]:
    """List the configs in a data set or evaluator, of which there are none once it was built."""
    return [config for config in (part if isinstance(part, Sequence) else [part]) if isinstance(config, Mapping)]


def _leaves(config: Mapping) -> Iterator[Mapping]:
    """Yield the configs of the data sets inside of wrappers, or the config itself."""
    inner = [*_configs(config.get("dataset")), *_configs(config.get("datasets"))]
    if "dataset" not in config and "datasets" not in config:
        yield config
    for one in inner:
        yield from _leaves(one)


def _paths(config: Mapping) -> list[str]:
    """List the local paths that a data set or a metric names."""
    if not _is_local(config.get("backend_args")):
        return []  # what looks like a local path may be mapped to a remote one
    root = os.fspath(config.get("data_root") or "")
    files, prefix = config.get("ann_file"), config.get("data_prefix")
    names = [*(files if isinstance(files, (list, tuple)) else [files])]
    names += prefix.values() if isinstance(prefix, Mapping) else [prefix]
    # MMEngine joins them in the same way.
    paths = [osp.join(root, name) for name in names if name]
    if not paths or any(path.startswith(root) for path in paths):
        paths.append(root)
    return [path for path in paths if path and "://" not in path]


def _is_local(backend_args: Mapping | None) -> bool:
    return (backend_args or {}).get("backend", "local") == "local"


def _holds_something(path: str) -> bool:
    if not osp.isdir(path):
        return osp.exists(path)
    with os.scandir(path) as entries:
        return next(entries, None) is not None


def _lacks_first_sample(dataset: object, seen: tuple[object, ...] = ()) -> bool:
    """Whether there is no first sample, or its pipeline will not find the files; of wrappers: of any inside."""
    if not isinstance(dataset, BaseDataset):
        inner = getattr(dataset, "datasets", None)
        parts = [*(inner if isinstance(inner, (list, tuple)) else ()), getattr(dataset, "dataset", None)]
        return any(_lacks_first_sample(part, (*seen, dataset)) for part in parts if part not in (None, *seen, dataset))
    if not len(dataset):
        return True
    sample = dataset.get_data_info(0)
    return any(_will_not_find_its_file(step, sample) for step in getattr(dataset.pipeline, "transforms", ()))


def _will_not_find_its_file(step: object, sample: Mapping) -> bool:
    keys = [key for base in type(step).__mro__ if (key := _READERS.get(base.__name__))]
    storages = (getattr(step, name, None) for name in ("backend_args", "file_client_args"))
    if (
        not keys
        or not all(map(_is_local, storages))
        or getattr(step, "ignore_empty", False)
        or not getattr(step, "with_seg", True)
    ):
        return False
    path = sample.get(keys[0])
    return isinstance(path, str) and "://" not in path and not osp.exists(path)


def _class(dataset: Mapping) -> type | None:
    kind = dataset.get("type")
    with DATASETS.switch_scope_and_registry(None) as registry:  # that of the library whose config this is
        return registry.get(kind) if isinstance(kind, str) else kind


def _has_own_classes(dataset: Mapping, cls: type | None) -> bool:
    own, usual = ((part or {}).get("classes") for part in (dataset.get("metainfo"), getattr(cls, "METAINFO", None)))
    return own is not None and usual is not None and list(own) != list(usual)
