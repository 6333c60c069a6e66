"""The browser draws what each library's pipeline gives, and says in a sentence what it cannot draw."""

import re

import numpy as np
import pytest
from mmengine.config import Config
from PIL import Image, ImageOps

from .load import ROOT, load_tool

# Configs, and the number of a colourful photograph of theirs that is not painted all over.
BUNDLED = {
    "mask_rcnn/msvmamba_n_coco_mini": 6,
    "upernet/msvmamba_n_coco_mini": 2,
    "cls/msvmamba_n_clothing_mini": 2,
}


@pytest.fixture(scope="module")
def browse():
    return load_tool("browse")


@pytest.mark.slow
@pytest.mark.parametrize("name", BUNDLED)
def test_draws_samples(browse, name, tmp_path):
    """What is drawn lies over its photograph, in its colours."""
    cfg = Config.fromfile(ROOT / f"configs/{name}.py")
    cfg.val_dataloader.dataset.indices = [BUNDLED[name]]
    (path,) = browse.draw(cfg, "val", 2, tmp_path / "new")
    assert path.parent == tmp_path / "new"
    (source,) = (ROOT / "data").rglob(path.name.removeprefix("0000_"))
    with Image.open(path) as drawing, Image.open(source) as photograph:
        drawn = np.asarray(drawing, dtype=float)
        original = np.asarray(ImageOps.fit(photograph.convert("RGB"), drawing.size), dtype=float)
    difference, swapped = (np.abs(one - original).mean() for one in (drawn, drawn[..., ::-1]))
    assert 1 < difference < 0.9 * swapped


def test_draws_what_training_gets(browse, tmp_path):
    cfg = Config.fromfile(ROOT / "configs/upernet/msvmamba_n_coco_mini.py")
    paths = list(browse.draw(cfg, "train", 2, tmp_path))
    assert paths == sorted(tmp_path.iterdir())
    assert len(paths) == 2
    for path in paths:
        with Image.open(path) as drawing:
            assert max(drawing.size) <= max(cfg.crop_size)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (
            "_base_/coco_mini_instance",
            "default_scope of this config is None, expected mmdet, mmseg, mmpretrain",
        ),
        (
            "mask_rcnn/msvmamba_t_1x",
            "No such file or directory: 'data/coco/annotations/instances_train2017.json'",
        ),
        ("nothing", r"No such file or directory: '.*nothing.py'"),
    ],
    ids=["no library", "no data", "no config"],
)
def test_what_cannot_be_drawn(browse, config, message, tmp_path, monkeypatch, capsys):
    path = ROOT / f"configs/{config}.py"
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.argv", ["browse.py", str(path)])
    with pytest.raises(SystemExit):
        browse.main()
    assert re.search(f"browse.py: error: .*{message}", capsys.readouterr().err)
