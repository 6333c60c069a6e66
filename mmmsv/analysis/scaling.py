"""Measure what models cost over the size of the image, and how accurate they are (Figure 6 of VMamba).

The paper shows FLOPs, and the accuracy of networks trained at 224 x 224, at 64 to 1024 pixels; the sizes between, and
how images were brought to them, are not said. Here the sizes of :data:`SIZES` are taken, and a config's own test
pipeline, in which the sides of ``ResizeEdge``, ``Resize`` and ``CenterCrop`` grow in proportion.
"""

import sys
from collections.abc import Mapping, Sequence
from contextlib import redirect_stdout
from dataclasses import dataclass
from pathlib import Path

from mmengine.config import Config
from mmengine.runner import Runner

from mmmsv.messages import first_sentence

from .flops import build_from_config, count
from .photographs import with_progress
from .speed.groups import Row, Settings, measure_group
from .speed.models import build, depends_on_size, full_name, short_name
from .speed.progress import progress
from .speed.workload import Step

SIZES = (64, 128, 224, 384, 512, 768, 1024)
_LEAST = 32  # pixels that one token of the last stage has at a side
# What a transform of mmpretrain calls the sides that it makes.
_SIDES = {"ResizeEdge": "scale", "Resize": "scale", "CenterCrop": "crop_size"}
_WITHOUT_SIDES = ("LoadImageFromFile", "PackInputs")
_TOP1 = "accuracy/top1"
# What a config has for training alone, which a test does without.
_TRAINING = (
    *("train_cfg", "train_dataloader", "optim_wrapper", "param_scheduler", "auto_scale_lr"),
    *("val_cfg", "val_dataloader", "val_evaluator"),
)


@dataclass(frozen=True)
class Point:
    """What was found of a model at a size of the image; None is what was not asked for, or failed.

    Args:
        model: Its name.
        size: Side of the image.
        macs: Multiply-adds for one image.
        latency: Seconds that one image takes, the median.
        peak: Bytes of memory that it takes, with the weights.
        accuracy: Share of images whose class is found, in per cent.
        failure: Why latency or memory could not be measured.
    """

    model: str
    size: int
    macs: int | None = None
    latency: float | None = None
    peak: int | None = None
    accuracy: float | None = None
    failure: str | None = None


def measure(
    names: Sequence[str], sizes: Sequence[int] = SIZES, ours: bool = False, settings: Settings | None = None
) -> list[Point]:
    """Measure what models cost for one square image of each size.

    Args:
        names: Archs such as ``'tiny'``, classifiers of torchvision, ``'deit_small'``, paths of configs.
        sizes: Sides of the image.
        ours: Whether multiply-adds are those that this code makes; otherwise those of the published convention, which
            :mod:`mmmsv.analysis.flops` describes.
        settings: Of the measurement of latency and memory, at inference in float32; None leaves both out. Configs are
            counted only.

    Returns:
        The points of the first model, then those of the others; models that are named twice once.

    Raises:
        ValueError: There is no such model, it cannot be counted, two configs have one name, a size is not allowed, or
            latency is asked for of a config.
    """
    _check(sizes)
    given = dict.fromkeys(name if _is_config(name) else full_name(name) for name in names)
    models = {_title(name): name for name in given}
    if len(models) < len(given):
        raise ValueError(f"several of {', '.join(given)} would be called the same in the figure; rename their files")
    if settings is not None and (configs := list(filter(_is_config, models.values()))):
        raise ValueError(
            f"latency and memory of {', '.join(configs)} are not measured, only those of models by name, such as tiny: "
            "leave them out (--no-speed), or give the arch"
        )
    macs = {name: _count(name, sizes, ours) for name in with_progress(models.values(), "multiply-adds")}
    rows = {} if settings is None else _measure_speed(list(models.values()), sizes, settings)
    return [
        _join(title, size, found, rows.get((name, size)))
        for title, name in models.items()
        for size, found in zip(sizes, macs[name], strict=True)
    ]


def measure_accuracy(tests: Sequence[tuple[str, str]], sizes: Sequence[int], folder: Path) -> list[Point]:
    """Test classifiers of mmpretrain on images of several sizes, without training them anew.

    Args:
        tests: Path of each config, whose test is run as it is, but for the sides in its pipeline; and its weights, as
            ``load_from`` takes them. The names of both are that of the model in the points.
        sizes: Sides of the image.
        folder: For what MMEngine writes: logs and the config of each test.

    Raises:
        ValueError: A size is not allowed, two tests have the same names, or a config is no classifier's, has a test
            pipeline that is not known here, or its test fails.
    """
    _check(sizes)
    titles = [f"{Path(config).stem}, {Path(checkpoint).name}" for config, checkpoint in tests]
    if len({*titles}) < len(titles):
        raise ValueError(f"two of the tests have the same name: {'; '.join(titles)}; give other files, or rename them")
    configs = [_read_test(config) for config, _ in tests]
    pipelines = [[scale_pipeline(cfg.test_dataloader.dataset.pipeline, size) for size in sizes] for cfg in configs]
    points = []
    for (path, checkpoint), title, cfg, its in zip(tests, titles, configs, pipelines, strict=True):
        cfg.merge_from_dict({"load_from": checkpoint, "log_level": "ERROR"})
        for size, pipeline in zip(with_progress(sizes, f"accuracy of {title}"), its, strict=True):
            cfg.test_dataloader.dataset.pipeline = pipeline
            cfg.experiment_name = f"{title}, {size} x {size}"
            cfg.work_dir = str(folder / cfg.experiment_name)
            points.append(Point(title, size, accuracy=_run_test(cfg, f"the test of {path} at {size} x {size}")))
    return points


def scale_pipeline(pipeline: Sequence[Mapping], size: int) -> list[dict]:
    """Change the sides in a test pipeline of mmpretrain in proportion, so that it makes images of ``size`` x ``size``.

    Raises:
        ValueError: It has transforms that are not known here, or makes no square images of one size.
    """
    names = [_name(transform["type"]) for transform in pipeline]
    sides = {i: side for i, name in enumerate(names) if (side := _side(name, pipeline[i])) is not None}
    known = all(i in sides or name in _WITHOUT_SIDES for i, name in enumerate(names))
    if not known or not {"Resize", "CenterCrop"} & {*names}:
        raise ValueError(
            f"the test pipeline {', '.join(names)} cannot be brought to another size: expected LoadImageFromFile, then "
            "ResizeEdge and CenterCrop, or Resize, with square sides, and nothing else but PackInputs"
        )
    scaled = [dict(transform) for transform in pipeline]
    for i, side in sides.items():
        scaled[i][_SIDES[names[i]]] = round(side * size / [*sides.values()][-1])
    return scaled


def _read_test(path: str) -> Config:
    """Read what a config of a classifier has for its test."""
    try:
        cfg = Config.fromfile(path)
    except Exception as error:
        # A config is a program, which may raise anything.
        raise ValueError(f"{path} cannot be read as a config ({first_sentence(error)})") from error
    if cfg.get("default_scope") != "mmpretrain" or "pipeline" not in cfg.get("test_dataloader", {}).get("dataset", {}):
        raise ValueError(
            f"{path} has no test pipeline of mmpretrain; give the config of a classifier, with a test_dataloader"
        )
    for key in _TRAINING:
        cfg.pop(key, None)
    return cfg


def _run_test(cfg: Config, what: str) -> float:
    """Return the top-1 accuracy."""
    try:
        with redirect_stdout(sys.stderr):  # where MMEngine prints what it loads
            metrics = Runner.from_cfg(cfg).test()
    except Exception as error:
        # Data sets, checkpoints and models of others raise anything.
        raise ValueError(f"{what} failed: {first_sentence(error)}") from error
    if _TOP1 not in metrics:
        raise ValueError(f"{what} finds {', '.join(metrics)}, expected {_TOP1}, of the evaluator Accuracy")
    return metrics[_TOP1]


def _side(name: str, transform: Mapping) -> int | None:
    """Return the side that a transform makes; None where it is none, or another one for each image."""
    side = transform.get(_SIDES.get(name, ""))
    sides = {side} if isinstance(side, int) else {*(side or ())}
    depends = transform.get("keep_ratio") or transform.get("efficientnet_style")
    return sides.pop() if len(sides) == 1 and not depends else None


def _name(kind: str | type) -> str:
    return kind.rpartition(".")[2] if isinstance(kind, str) else kind.__name__


def _check(sizes: Sequence[int]) -> None:
    if not sizes or min(sizes) < _LEAST or len({*sizes}) < len(sizes):
        raise ValueError(
            f"the sizes are {', '.join(map(str, sizes))}, expected numbers of at least {_LEAST}, each once"
        )


def _is_config(name: str) -> bool:
    return Path(name).suffix == ".py"


def _title(name: str) -> str:
    return Path(name).stem if _is_config(name) else short_name(name)


def _count(name: str, sizes: Sequence[int], ours: bool) -> list[int]:
    """Count a model at each size; one that depends on it is built for each."""
    found, model = [], None
    for size in sizes:
        if model is None or depends_on_size(name):
            model = build_from_config(name)[0] if _is_config(name) else build(name, False, (size, size)).eval()
        found.append(count(model, (size, size), ours).total)
    return found


def _measure_speed(names: Sequence[str], sizes: Sequence[int], settings: Settings) -> dict[tuple[str, int], Row]:
    rows = {}
    with progress(len(sizes)) as bar:
        for size in sizes:
            step = Step(size, size, 1, False, "float32", False)
            group = measure_group(names, step, settings, lambda text, step=step: bar.show(f"{step}: {text}"))
            bar.advance(step, group)
            rows |= {(row.model, size): row for row in group}
    return rows


def _join(title: str, size: int, macs: int, row: Row | None) -> Point:
    if row is None:
        return Point(title, size, macs)
    latency = row.timing.median if row.timing else None
    peak = row.peak.whole if row.peak else None
    return Point(title, size, macs, latency, peak, failure=row.reason or row.no_peak)
