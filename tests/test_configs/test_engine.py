"""Hooks and loops, in this process, on small models."""

import random
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from mmengine.config import Config
from mmengine.model import convert_sync_batchnorm
from mmengine.registry import init_default_scope
from mmengine.runner import Runner
from mmpretrain.models import AverageClsScoreTTA
from torch import nn

from mmmsv.engine import SeedEpochHook, hooks
from mmmsv.engine.channels import channel_faults
from mmmsv.engine.hooks import misfits
from mmmsv.engine.loops import missing_paths

CONFIG = Path(__file__).parents[2] / "configs/cls/msvmamba_n_clothing_mini.py"
SMALL = Path(__file__).parents[1] / "test_end_to_end/small"


def _runner(tmp_path: Path, **changes: object) -> Runner:
    cfg = Config.fromfile(CONFIG)
    cfg.merge_from_dict(
        {
            "work_dir": str(tmp_path / "run"),
            "model.backbone.arch": {"_delete_": True, "embed_dims": (8, 16), "depths": (1, 1)},
            "model.backbone.out_indices": (1,),
            "model.head.in_channels": 16,
            "train_dataloader.dataset.indices": 2,
            "train_dataloader.batch_size": 2,
            "test_dataloader.dataset.indices": 2,
            "train_cfg.max_epochs": 1,
            "param_scheduler": [],
            "val_cfg": None,
            "val_dataloader": None,
            "val_evaluator": None,
            "experiment_name": f"{tmp_path.name}_{random.getrandbits(64)}",
            **changes,
        }
    )
    init_default_scope(cfg.default_scope)
    return Runner.from_cfg(cfg)


@pytest.fixture
def checkpoint(tmp_path) -> Path:
    """A checkpoint of the small classifier with 7 classes, where the config has 10."""
    model = _runner(tmp_path, **{"model.head.num_classes": 7}).model
    path = tmp_path / "seven_classes.pth"
    torch.save({"state_dict": model.state_dict(), "meta": {"epoch": 0, "iter": 0}}, path)
    return path


@pytest.mark.parametrize("resume", [False, True])
def test_misfit_is_refused_and_the_model_left_alone(tmp_path, checkpoint, resume):
    runner = _runner(tmp_path, load_from=str(checkpoint), resume=resume)
    # Training initialises a model before it resumes; here that is done beforehand.
    runner.model.init_weights()
    runner._init_model_weights = lambda: None
    before = {name: value.clone() for name, value in runner.model.state_dict().items()}
    run = runner.train if resume else runner.test
    with pytest.raises(ValueError, match="does not fit ImageClassifier") as error:
        run()
    assert ("resumed from" if resume else "tested") in str(error.value)
    assert "head.fc.weight" in str(error.value)
    assert "torch.Size([7, 16])" in str(error.value)
    assert all(torch.equal(value, before[name]) for name, value in runner.model.state_dict().items())


def test_models_wrapped_for_test_time_augmentation(tmp_path, checkpoint):
    runner = _runner(tmp_path)
    classifier = runner.model
    fitting = {name: torch.full_like(value, 0.5) for name, value in classifier.state_dict().items()}
    torch.save({"state_dict": fitting}, tmp_path / "ten_classes.pth")
    runner.model = AverageClsScoreTTA(module=classifier)
    runner.load_checkpoint(str(tmp_path / "ten_classes.pth"))
    assert all(torch.equal(value, fitting[name]) for name, value in classifier.state_dict().items())
    with pytest.raises(ValueError, match="does not fit ImageClassifier and cannot be tested"):
        runner.load_checkpoint(str(checkpoint))


def test_fine_tuning_may_change_the_head(tmp_path, checkpoint):
    runner = _runner(tmp_path, load_from=str(checkpoint), **{"optim_wrapper.optimizer.lr": 0.0})
    runner.train()
    theirs = torch.load(checkpoint)["state_dict"]
    loaded = [name for name, value in runner.model.state_dict().items() if torch.equal(value, theirs[name])]
    assert set(theirs) - set(loaded) == {"head.fc.weight", "head.fc.bias"}


def test_one_epoch_is_enough(tmp_path):
    """The bundled schedules may be cut short, as for a first try."""
    runner = _runner(tmp_path, param_scheduler=Config.fromfile(CONFIG).param_scheduler)
    runner.train()
    assert runner.epoch == 1


def test_misfits_counts_names_and_shortens():
    model = nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3), nn.Linear(3, 4))
    state = model.state_dict()
    assert misfits(model, state) == []
    assert misfits(model, {f"module.{name}": value for name, value in state.items()}) == []

    # Names that changed with a version of their module: without the version in the file, BatchNorm would take the
    # missing counter for one of before there was any.
    del state["1.num_batches_tracked"]
    assert misfits(model, state) == ['Missing key(s) in state_dict: "1.num_batches_tracked".']

    missing, unexpected, shapes = misfits(
        model, {"2.weight": torch.zeros(5, 3), **{f"head.{i}": torch.zeros(1) for i in range(4)}}
    )
    assert missing.startswith("Missing key(s)")
    assert '"0.weight", "0.bias", "1.weight", ... (7 in all)' in missing
    assert '"head.0", "head.1", "head.2", ... (4 in all)' in unexpected
    assert shapes.startswith("size mismatch for 2.weight")


def _draws(seed: int, iteration: int, **randomness: bool) -> tuple:
    runner = SimpleNamespace(seed=seed, iter=iteration, cfg={"randomness": randomness})
    SeedEpochHook().before_train_epoch(runner)
    return random.random(), np.random.rand(), torch.rand(1).item()


def test_epochs_draw_what_seed_and_iteration_say(monkeypatch):
    assert _draws(0, 12) == _draws(0, 12)
    others = [_draws(0, 12), _draws(0, 13), _draws(1, 12)]
    monkeypatch.setattr(hooks, "get_rank", lambda: 1)
    assert _draws(0, 12) == others[0]
    others.append(_draws(0, 12, diff_rank_seed=True))
    for generator in zip(*others, strict=True):
        assert len(set(generator)) == len(others)


def test_missing_paths(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "there/images/train").mkdir(parents=True)
    there = {"data_root": "there", "data_prefix": {"img": "images/"}}
    assert missing_paths(there) == []
    assert missing_paths({**there, "ann_file": "all.json"}) == [str(tmp_path / "there/all.json")]
    assert missing_paths({**there, "data_prefix": "labels"}) == [str(tmp_path / "there/labels")]
    # A folder is missed, too, if there is nothing in it.
    assert missing_paths({**there, "data_prefix": "images/train"}) == [str(tmp_path / "there/images/train")]
    # The root says it all.
    gone = {"data_root": "gone", "ann_file": "all.json", "data_prefix": {"img": "images/"}}
    assert missing_paths(gone) == [str(tmp_path / "gone")]
    assert missing_paths({"data_root": "s3://bucket/coco", "ann_file": "all.json"}) == []
    # Inside wrappers.
    assert missing_paths({"type": "RepeatDataset", "dataset": {"datasets": [there, gone]}}) == [str(tmp_path / "gone")]
    # An evaluator may name its own file.
    metric = {"type": "CocoMetric", "ann_file": "there/val.json"}
    assert missing_paths(there, metric) == [str(tmp_path / "there/val.json")]


def test_folder_that_the_data_set_names_itself(tmp_path):
    """ImageNet's config has a root and a split, of which mmpretrain makes a folder."""
    (tmp_path / "imagenet/train").mkdir(parents=True)
    split = {"_delete_": True, "type": "ImageNet", "data_root": str(tmp_path / "imagenet"), "split": "val"}
    runner = _runner(tmp_path, **{"test_dataloader.dataset": split})
    with pytest.raises(FileNotFoundError, match=r"TestLoop: the data set lacks /.*imagenet/val .*git checkout -- data"):
        runner.test()


def _detector(tmp_path: Path, **changes: object) -> Runner:
    cfg = Config.fromfile(SMALL / "mmdet.py")
    cfg.merge_from_dict({"work_dir": str(tmp_path), "experiment_name": f"{tmp_path}", **changes})
    init_default_scope(cfg.default_scope)
    return Runner.from_cfg(cfg)


def test_evaluator_without_annotations(tmp_path):
    runner = _detector(tmp_path, **{"val_evaluator.ann_file": "nowhere.json"})
    with pytest.raises(FileNotFoundError, match=r"ValLoop: the data set lacks /.*nowhere.json .*git checkout -- data"):
        runner.val()


@pytest.mark.parametrize("content", ["", '{"images": [{"id": 1, "file_na'], ids=["empty", "cut-off"])
def test_damaged_annotations(tmp_path, content):
    annotations = tmp_path / "val.json"
    annotations.write_text(content)
    changes = {"val_dataloader.dataset.ann_file": str(annotations), "val_evaluator.ann_file": str(annotations)}
    with pytest.raises(ValueError, match=f"ValLoop: what is read of the data set, such as {annotations}, is") as error:
        _detector(tmp_path, **changes).val()
    assert "git checkout -- data" in str(error.value)


MAPS = (96, 192, 384, 768)


@pytest.mark.parametrize(
    "model",
    [
        {"neck": {"in_channels": [96, 192, 384, 768]}, "rpn_head": {"in_channels": 256}},
        {"neck": {"type": "mmdet.YOLOV3Neck", "in_channels": [768, 384, 192, 96]}},
        {"neck": [{"in_channels": [96, 192, 384, 768]}, {"in_channels": 256}]},
        {"neck": {"in_channels": 768}},
        {"neck": {"type": "GlobalAveragePooling"}, "head": {"in_channels": 768}},
        {"neck": None, "head": {"type": "NoChannels"}},
        {"neck": {"type": "Concatenation"}, "head": {"in_channels": 1440}},
        {"neck": {"type": "SimpleFPN", "backbone_channel": 768, "in_channels": [192, 384, 768, 768]}},
        {"decode_head": {"in_channels": 768, "in_index": None}, "auxiliary_head": {"in_channels": {"a": 96}}},
        {"decode_head": {"in_channels": [96, 384], "in_index": [0, 2]}, "auxiliary_head": None},
        {"decode_head": [{"in_channels": 768}, {"in_channels": 512}]},
        {"panoptic_head": {"in_channels": [96, 192, 384, 768]}},
    ],
    ids=[
        "fpn",
        "yolo",
        "two-necks",
        "last",
        "pooled",
        "none",
        "neck",
        "pyramid",
        "unknown",
        "index",
        "cascade",
        "mask2former",
    ],
)
def test_channels_that_fit(model):
    assert channel_faults(model, MAPS) == []


@pytest.mark.parametrize(
    ("model", "fault"),
    [
        ({"neck": {"in_channels": [96, 192, 384]}}, "model.neck.in_channels is [96, 192, 384], but should be [96, "),
        ({"neck": {"type": "FPN", "in_channels": [768, 384, 192, 96]}}, "model.neck.in_channels is [768, 384, 192, 96"),
        ({"neck": {"in_channels": 2048}}, "model.neck.in_channels is 2048, but should be 768"),
        (
            {"neck": {"type": "mmpretrain.GeneralizedMeanPooling"}, "head": {"in_channels": 384}},
            "model.head.in_channels is 384, but should be 768",
        ),
        (
            {"decode_head": {"in_channels": [384, 96], "in_index": [0, 2]}},
            "model.decode_head.in_channels is [384, 96], but should be [96, 384]",
        ),
        (
            {"auxiliary_head": [{"in_channels": 768}, {"in_channels": 384, "in_index": 4}]},
            "model.auxiliary_head[1].in_index is 4, but there are 4",
        ),
    ],
    ids=["fpn", "reversed", "last", "pooled", "index", "beyond"],
)
def test_channels_that_do_not_fit(model, fault):
    (told,) = channel_faults(model, MAPS)
    assert told.startswith(fault)


def test_a_head_that_does_not_fit_is_refused_before_training(tmp_path):
    with pytest.raises(ValueError, match=r"model.head.in_channels is 768, but should be 16, since this MSVMamba gives"):
        _runner(tmp_path, **{"model.head.in_channels": 768}).train()


@pytest.mark.slow
@pytest.mark.parametrize("library", ["mmdet", "mmseg", "mmpretrain"])
def test_every_parameter_gets_a_gradient(tmp_path, library):
    """So that distributed training needs no ``find_unused_parameters``; nor does SyncBN touch the backbone."""
    cfg = Config.fromfile(SMALL / f"{library}.py")
    cfg.merge_from_dict({"work_dir": str(tmp_path), "experiment_name": f"{tmp_path}"})
    init_default_scope(cfg.default_scope)
    runner = Runner.from_cfg(cfg)
    model = runner.model
    data = next(iter(runner.build_dataloader(cfg.train_dataloader)))
    loss, _ = model.parse_losses(model(**model.data_preprocessor(data, True), mode="loss"))
    loss.backward()
    assert [name for name, param in model.named_parameters() if param.requires_grad and param.grad is None] == []

    before = [type(module) for module in model.backbone.modules()]
    assert [type(module) for module in convert_sync_batchnorm(model, "torch").backbone.modules()] == before
