"""Whatever OpenMMLab reads checkpoints with reads those of our configs, before a model of this package was built."""

import runpy
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
import torch
from mmdet.apis import DetInferencer
from mmengine.config import Config
from mmengine.runner import CheckpointLoader, checkpoint, load_checkpoint
from mmseg.apis import MMSegInferencer

from mmmsv.compat.mmengine_checkpoints import allow_mmengine_checkpoints
from mmmsv.compat.plain_checkpoints import make_plain
from mmmsv.models import MSVMamba
from tests.test_engine.small_runs import SMALL, small_run

from .checkpoint_files import RESTRICTED, nothing_allowed


def save(library, tmp_path, hook="mmmsv.CheckpointHook"):
    """A checkpoint as a run of a small config saves it, without the run."""
    changes = {"train_dataloader.dataset.indices": 2, "default_hooks.checkpoint.type": hook}
    runner = small_run(SMALL / f"{library}.py", tmp_path, **changes)
    runner.message_hub.update_scalar("train/loss", 0.5)
    runner.message_hub.update_info("best_score", np.float64(0.25))
    for one in runner.hooks:
        if type(one).__name__ == "EMAHook":
            one.before_run(runner)
    options = {"save_optimizer": False, "save_param_scheduler": False}
    runner.save_checkpoint(str(tmp_path), "saved.pth", meta={"epoch": 1}, **options)
    return str(tmp_path / "saved.pth")


def tool(library, name):
    """What a tool in the package of a library defines."""
    return runpy.run_path(str(Path(find_spec(library).origin).parent / ".mim/tools" / name))


@pytest.fixture(scope="module")
def saved_mmdet(tmp_path_factory):
    return save("mmdet", tmp_path_factory.mktemp("mmdet"))


@pytest.fixture(scope="module")
def saved_mmseg(tmp_path_factory):
    return save("mmseg", tmp_path_factory.mktemp("mmseg"))


@pytest.fixture(scope="module")
def saved_mmpretrain(tmp_path_factory):
    return save("mmpretrain", tmp_path_factory.mktemp("mmpretrain"))


@pytest.mark.parametrize("config", [SMALL / "mmdet.py", None], ids=["with config", "with weights alone"])
def test_inferencer_of_mmdet(saved_mmdet, config):
    with nothing_allowed():
        inferencer = DetInferencer(model=config and str(config), weights=saved_mmdet, device="cpu")
    assert type(inferencer.model.backbone) is MSVMamba


def test_inferencer_of_mmseg(saved_mmseg):
    with nothing_allowed():
        inferencer = MMSegInferencer(None, weights=saved_mmseg, device="cpu")
    assert len(inferencer.model.dataset_meta["classes"]) == 133


def test_publishing_of_mmdet(saved_mmdet, tmp_path, monkeypatch):
    publish = tool("mmdet", "model_converters/publish_model.py")
    # It starts `sha256sum`, and then `mv`, for which it does not wait.
    monkeypatch.setattr(subprocess, "check_output", lambda _: b"01234567")
    monkeypatch.setattr(subprocess, "Popen", lambda _: None)
    with nothing_allowed():
        publish["process_checkpoint"](saved_mmdet, str(tmp_path / "out.pth"))
        assert set(torch.load(tmp_path / "out.pth")) == {"meta", "state_dict"}


def test_publishing_of_mmpretrain(saved_mmpretrain, tmp_path, monkeypatch):
    publish = tool("mmpretrain", "model_converters/publish_model.py")
    monkeypatch.setattr(sys, "argv", ["publish_model.py", saved_mmpretrain, str(tmp_path / "out.pth")])
    with nothing_allowed():
        publish["main"]()
        (published,) = tmp_path.glob("out_*.pth")
        assert set(torch.load(published)) == {"meta", "state_dict"}


def test_loading_weights_alone(saved_mmseg):
    with nothing_allowed():
        loaded = load_checkpoint(torch.nn.Linear(1, 1), saved_mmseg)
    assert loaded["message_hub"]["runtime_info"]["best_score"] == 0.25


@pytest.mark.skipif(not RESTRICTED, reason="torch before 2.6 builds whatever a file asks for")
def test_what_a_stock_hook_saved(tmp_path, monkeypatch):
    """Loads where this package was imported, which its configs do."""
    path = save("mmpretrain", tmp_path, hook="CheckpointHook")
    with nothing_allowed():
        with pytest.raises(Exception, match="Unsupported global"):
            CheckpointLoader.load_checkpoint(path)
        monkeypatch.delitem(sys.modules, "mmmsv")
        __import__("mmmsv")
        loaded = CheckpointLoader.load_checkpoint(path)
        assert loaded["message_hub"]["log_scalars"]["train/loss"].current() == 0.5
    make_plain(loaded)
    torch.save(loaded, path)
    with nothing_allowed():
        assert load_checkpoint(torch.nn.Linear(1, 1), path)["meta"]["epoch"] == 1


def test_configs_import_this_package(monkeypatch):
    """Inferencers read weights after the config, and before they build the model."""
    imported = []
    monkeypatch.setattr("mmengine.utils.import_modules_from_strings", imported.append)
    Config.fromfile(SMALL / "mmpretrain.py", import_custom_modules=False)
    assert imported == ["mmmsv.registry"]


def test_own_imports_of_a_config(tmp_path, monkeypatch):
    """A config may inherit ours, and another base with custom_imports: no two bases may have one key."""
    (tmp_path / "imported_by_a_config.py").touch()
    (tmp_path / "base.py").write_text("custom_imports = dict(imports=['imported_by_a_config'])")
    (tmp_path / "config.py").write_text(f"_base_ = [{str(SMALL / 'mmpretrain.py')!r}, './base.py']")
    monkeypatch.syspath_prepend(tmp_path)
    Config.fromfile(tmp_path / "config.py")
    assert sys.modules.pop("imported_by_a_config")


@pytest.mark.skipif(not RESTRICTED, reason="torch before 2.6 has no list of what is safe")
def test_list_of_the_maintained_fork(tmp_path, monkeypatch):
    """It allows types that stand-ins are registered for, and `getattr`, while it loads: replaced at the import."""
    monkeypatch.setattr(checkpoint, "get_torch_safe_globals", lambda: [getattr], raising=False)
    allow_mmengine_checkpoints()
    in_fork = checkpoint.get_torch_safe_globals is list
    metadata = tmp_path / "onedl_mmengine-0.10.12.dist-info/METADATA"
    metadata.parent.mkdir()
    metadata.write_text("Metadata-Version: 2.1\nName: onedl-mmengine\nVersion: 0.10.12\n")
    monkeypatch.syspath_prepend(tmp_path)
    allow_mmengine_checkpoints()
    assert checkpoint.get_torch_safe_globals() == []
    assert not in_fork
