"""Weights in safetensors files load by all ways, whatever their names."""

import os
import sys

import pytest
import torch
from mmengine.runner import CheckpointLoader, load_checkpoint

from mmmsv.checkpoints.conversion import from_authors_file
from mmmsv.checkpoints.reading import read_checkpoint
from mmmsv.models import MSVMamba
from tests.test_engine.small_runs import small_classifier

from .test_initializer import initialize, loaded
from .test_other_programs import SMALL, assert_loaded, put_before


@pytest.fixture
def weights():
    """Of a backbone."""
    return {name: torch.full_like(value, 0.5) for name, value in MSVMamba(SMALL).state_dict().items()}


@pytest.fixture
def save(tmp_path):
    safetensors = pytest.importorskip("safetensors.torch")

    def save(weights):
        safetensors.save_file(weights, tmp_path / "model.safetensors")
        return str(tmp_path / "model.safetensors")

    return save


def test_pretrained(weights, save):
    path = save({**put_before("_orig_mod.backbone.")(weights), "_orig_mod.head.weight": torch.ones(1)})
    model = MSVMamba(SMALL, init_cfg={"type": "Pretrained", "checkpoint": path, "prefix": "backbone."})
    model.init_weights()
    assert_loaded(model, weights)


@pytest.mark.parametrize("name", ["MODEL.SAFETENSORS", "weights.pth", "weights"])
def test_other_names(tmp_path, weights, save, authors, name):
    """It is known by its content."""
    os.rename(save(weights), tmp_path / name)
    model = MSVMamba(SMALL)
    load_checkpoint(model, str(tmp_path / name))
    assert_loaded(model, weights)
    os.rename(save(authors.weights), tmp_path / name)
    initialize(authors.model(out_indices=(3,)), tmp_path / name)


def test_what_torch_saved(tmp_path, weights):
    torch.save({"model": weights}, tmp_path / "model.safetensors")
    model = MSVMamba(SMALL)
    load_checkpoint(model, str(tmp_path / "model.safetensors"))
    assert_loaded(model, weights)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("model.safetensors.index.json", "lists the files that a checkpoint was cut into: read them with"),
        ("model-00001-of-00002.safetensors", "is one of the files that a checkpoint was cut into: read them"),
    ],
)
def test_several_files(tmp_path, weights, save, name, message):
    if name.endswith("json"):
        (tmp_path / name).write_text('{"metadata": {}, "weight_map": {}}')
    else:
        os.rename(save(weights), tmp_path / name)
    for load in (CheckpointLoader.load_checkpoint, read_checkpoint):
        with pytest.raises(ValueError, match=f"{name} {message}"):
            load(str(tmp_path / name))


def test_map_location(weights, save):
    path, asked = save(weights), []
    for map_location in (
        "meta",
        torch.device("meta"),
        {"cpu": "meta"},
        lambda storage, location: asked.append(location) or torch.empty(0, device="meta").untyped_storage(),
    ):
        loaded = CheckpointLoader.load_checkpoint(path, map_location=map_location)
        assert all(value.is_meta for value in loaded.values())
    assert asked == ["cpu"] * len(weights)
    for map_location in (None, {"cuda:0": "meta"}, lambda storage, _: storage, lambda *_: None):
        loaded = CheckpointLoader.load_checkpoint(path, map_location=map_location)
        assert all(torch.equal(loaded[name], value) for name, value in weights.items())


def test_run(tmp_path, save):
    weights = {n: torch.full_like(v, 0.5) for n, v in small_classifier(tmp_path).model.state_dict().items()}
    runner = small_classifier(tmp_path, load_from=save(weights))
    runner.load_or_resume()
    assert_loaded(runner.model, weights)


def test_authors(authors, save):
    model = initialize(authors.model(out_indices=(3,)), save(authors.weights))
    assert loaded(model, authors.weights) == model.state_dict().keys()
    ours, _ = from_authors_file(save(authors.weights))
    assert len(ours["state_dict"]) >= len(authors.weights)


def test_truncated(tmp_path, save, weights):
    path = tmp_path / "torn.safetensors"
    with open(save(weights), "rb") as file:
        path.write_bytes(file.read()[:-100])
    with pytest.raises(ValueError, match=r"torn.safetensors is cut off or damaged \(.*\); get it again"):
        from_authors_file(path)
    model = MSVMamba(SMALL, init_cfg={"type": "Pretrained", "checkpoint": str(path)})
    with pytest.raises(ValueError, match=r"torn.safetensors is cut off or damaged"):
        model.init_weights()


def test_library_is_missing(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "safetensors", None)
    path = tmp_path / "model.safetensors"
    path.write_bytes((2).to_bytes(8, "little") + b"{}" + b"\0" * 8)
    for read in (from_authors_file, lambda path: load_checkpoint(MSVMamba(SMALL), str(path))):
        with pytest.raises(ValueError, match="is read by a library that is not installed: pip install safetensors"):
            read(path)
