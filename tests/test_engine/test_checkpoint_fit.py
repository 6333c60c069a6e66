"""A checkpoint that does not fit is refused for testing and resuming, with the model as it was."""

from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from mmengine.runner import EpochBasedTrainLoop
from mmengine.runner.checkpoint import _load_checkpoint_to_model
from mmpretrain.models import AverageClsScoreTTA
from torch import nn

from mmmsv.engine import CheckpointFitHook
from mmmsv.engine.hooks import checkpoint_fit
from mmmsv.engine.hooks.checkpoint_fit import list_loading_mismatches
from mmmsv.models import MSVMamba

from .small_runs import small_classifier


@pytest.fixture
def checkpoint(tmp_path) -> Path:
    """A checkpoint of the small classifier with 7 classes, where the config has 10."""
    model = small_classifier(tmp_path, **{"model.head.num_classes": 7}).model
    path = tmp_path / "seven_classes.pth"
    torch.save({"state_dict": model.state_dict(), "meta": {"epoch": 0, "iter": 0}}, path)
    return path


@pytest.mark.parametrize("resume", [False, True], ids=["test", "resume"])
def test_mismatch_is_refused_and_the_model_left_alone(tmp_path, checkpoint, resume):
    runner = small_classifier(tmp_path, load_from=str(checkpoint), resume=resume)
    # Training initialises a model before it resumes; here that is done beforehand.
    runner.model.init_weights()
    runner._init_model_weights = lambda: None
    before = {name: value.clone() for name, value in runner.model.state_dict().items()}
    run = runner.train if resume else runner.test
    with pytest.raises(ValueError, match="does not fit ImageClassifier") as error:
        run()
    assert ("resumed from" if resume else "tested") in str(error.value)
    assert "head.fc.weight ((7, 16) in the checkpoint, (10, 16) in the model)" in str(error.value)
    assert all(torch.equal(value, before[name]) for name, value in runner.model.state_dict().items())


def test_models_wrapped_for_test_time_augmentation(tmp_path, checkpoint):
    runner = small_classifier(tmp_path)
    classifier = runner.model
    fitting = {name: torch.full_like(value, 0.5) for name, value in classifier.state_dict().items()}
    torch.save({"state_dict": fitting}, tmp_path / "ten_classes.pth")
    runner.model = AverageClsScoreTTA(module=classifier)
    runner.load_checkpoint(str(tmp_path / "ten_classes.pth"))
    assert all(torch.equal(value, fitting[name]) for name, value in classifier.state_dict().items())
    with pytest.raises(ValueError, match="does not fit ImageClassifier and cannot be tested"):
        runner.load_checkpoint(str(checkpoint))


def test_fine_tuning_may_change_the_head(tmp_path, checkpoint):
    runner = small_classifier(tmp_path, load_from=str(checkpoint), **{"optim_wrapper.optimizer.lr": 0.0})
    runner.train()
    theirs = torch.load(checkpoint)["state_dict"]
    loaded = [name for name, value in runner.model.state_dict().items() if torch.equal(value, theirs[name])]
    assert set(theirs) - set(loaded) == {"head.fc.weight", "head.fc.bias"}


def test_mismatches_are_counted_and_their_names_shortened():
    model = nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3), nn.Linear(3, 4))
    state = model.state_dict()
    assert list_loading_mismatches(model, state) == []
    assert list_loading_mismatches(model, {f"module.{name}": value for name, value in state.items()}) == []

    # Names that changed with a version of their module: without the version in the file, BatchNorm would take the
    # missing counter for one of before there was any.
    del state["1.num_batches_tracked"]
    assert list_loading_mismatches(model, state) == ["1 missing: 1.num_batches_tracked"]

    weights = {"2.weight": torch.zeros(5, 3), **{f"head.{i}": torch.zeros(1) for i in range(4)}}
    assert list_loading_mismatches(model, weights) == [
        "7 missing: 0.weight, 0.bias, 1.weight, ...",
        "4 unexpected: head.0, head.1, head.2, ...",
        "1 of another shape: 2.weight ((5, 3) in the checkpoint, (4, 3) in the model)",
    ]
    (error,) = list_loading_mismatches(model, {**model.state_dict(), "0.bias": "no tensor"})
    assert "0.bias" in error


class Renaming(nn.Module):
    """Had another name for a layer in its first version, as mmdet's heads do."""

    _version = 2

    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(2, 2)

    def _load_from_state_dict(self, state_dict, prefix, local_metadata, *arguments):
        if local_metadata.get("version", 1) < 2:
            state_dict[f"{prefix}fc.weight"] = state_dict.pop(f"{prefix}old.weight")
        super()._load_from_state_dict(state_dict, prefix, local_metadata, *arguments)


def load(model, checkpoint, resume=False):
    """Load a checkpoint as a runner does that has the hook."""
    loop = EpochBasedTrainLoop.__new__(EpochBasedTrainLoop) if resume else {}
    runner = SimpleNamespace(model=model, _train_loop=loop, _resume=resume)
    CheckpointFitHook().after_load_checkpoint(runner, checkpoint)
    _load_checkpoint_to_model(model, checkpoint, strict=True)


@pytest.mark.parametrize("wrappers", ["", "module.", "_orig_mod.", "module._orig_mod."])
@pytest.mark.parametrize("own", [False, True], ids=["", "a part named module"])
@pytest.mark.parametrize("part", ["backbone", "bbox_head"])
def test_versions_of_modules_are_kept(wrappers, own, part):
    model, written = (nn.ModuleDict({part: Renaming()}) for _ in range(2))
    if own:
        model, written = nn.ModuleDict({"module": model}), nn.ModuleDict({"module": written})
    for wrapper in reversed(wrappers.split(".")[:-1]):
        written = nn.ModuleDict({wrapper: written})
    load(model, {"state_dict": written.state_dict(), "meta": {}})
    weights = written.state_dict().values()
    assert all(torch.equal(*pair) for pair in zip(model.state_dict().values(), weights, strict=True))


@pytest.mark.parametrize("resume", [False, True], ids=["test", "resume"])
@pytest.mark.parametrize("other", ["teacher.", "gan.discriminator.", "model.", ""])
def test_only_wrappers_of_torch_are_taken_off(other, resume):
    """A part of another name is another part."""
    model = nn.ModuleDict({"student": nn.ModuleDict({"backbone": nn.Linear(2, 2)})})
    checkpoint = {"state_dict": {f"{other}backbone.weight": torch.ones(2, 2)}, "meta": {}}
    with pytest.raises(ValueError, match=f"2 missing: student.backbone.weight, .*\n.*unexpected: {other}backbone"):
        load(model, checkpoint, resume)


def test_the_log_says_what_was_taken_off(monkeypatch):
    lines = []
    monkeypatch.setattr(checkpoint_fit, "print_log", lambda message, _: lines.append(message))
    model = nn.ModuleDict({"backbone": nn.Linear(2, 2, bias=False)})
    load(model, {"state_dict": {"_orig_mod.backbone.weight": torch.ones(2, 2)}, "meta": {}})
    assert lines == ["what wrappers add to names is not as in the model, and changed: _orig_mod.backbone.weight"]
    checkpoint = {"state_dict": (same := model.state_dict()), "meta": {}}
    load(model, checkpoint)
    assert checkpoint["state_dict"] is same
    assert len(lines) == 1


@pytest.mark.parametrize("how", ["init", "repeat", "average", None])
@pytest.mark.parametrize("resume", [False, True], ids=["test", "resume"])
def test_in_channels_are_not_adapted(how, resume):
    """Neither when testing nor when resuming, and a first weight is not left as initialised."""

    def model(**options):
        return nn.ModuleDict({"backbone": MSVMamba({"embed_dims": (8, 16), "depths": (1, 1)}, **options)})

    weights = model().state_dict()
    lacking = {name: value for name, value in weights.items() if not name.endswith("stem.conv.weight")}
    for file, channels, message in (
        (weights, 5, "It was made with in_channels=3: give the model the same; to begin with its weights, adapt_in_"),
        (lacking, 3, "It lacks the first weight alone; to begin with the others, adapt_in_channels='init'"),
    ):
        with pytest.raises(ValueError, match=message):
            load(model(in_channels=channels, adapt_in_channels=how), {"state_dict": file, "meta": {}}, resume)


class Converting(nn.Linear):
    """Loads what an older version of it wrote: a kernel instead of a weight, and a bias of another shape."""

    def _load_from_state_dict(self, state_dict, prefix, *arguments):
        state_dict[f"{prefix}weight"] = state_dict.pop(f"{prefix}kernel").mT
        state_dict[f"{prefix}bias"] = state_dict[f"{prefix}bias"].flatten()
        super()._load_from_state_dict(state_dict, prefix, *arguments)


def test_converted_weights_are_no_mismatch():
    model = nn.Sequential(Converting(2, 3), nn.Linear(3, 3))
    model.register_buffer("temporary", torch.zeros(2), persistent=False)
    model.register_parameter("scale", nn.Parameter(torch.ones(())))
    fitting = {"0.kernel": torch.ones(2, 3), "0.bias": torch.ones(3, 1), "scale": torch.ones(1)}
    fitting |= {"1.weight": torch.ones(3, 3, dtype=torch.int64), "1.bias": torch.ones(3)}
    assert list_loading_mismatches(model, fitting) == []
    assert list_loading_mismatches(model, {**fitting, "temporary": torch.zeros(2), "1.bias": torch.ones(4)}) == [
        "1 unexpected: temporary",
        "1 of another shape: 1.bias ((4,) in the checkpoint, (3,) in the model)",
    ]
    (error,) = list_loading_mismatches(model, {**fitting, "0.kernel": torch.ones(3, 3)})
    assert "size mismatch for 0.weight" in error
