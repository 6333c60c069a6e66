"""Metafiles agree with the files, the models and the README."""

from pathlib import Path

import pytest
import torch
import yaml
from mmengine.config import Config

from mmmsv.models import MSVMamba

ROOT = Path(__file__).parents[2]
METAFILES = yaml.safe_load((ROOT / "model-index.yml").read_text())["Import"]
MODELS = [model for path in METAFILES for model in yaml.safe_load((ROOT / path).read_text())["Models"]]


def test_all_metafiles_are_listed():
    assert sorted(METAFILES) == sorted(str(path.relative_to(ROOT)) for path in ROOT.glob("configs/*/metafile.yml"))
    assert sorted(model["Config"] for model in MODELS) == sorted(
        str(path.relative_to(ROOT)) for path in ROOT.glob("configs/cls/*_300e.py")
    )


@pytest.mark.parametrize("model", MODELS, ids=lambda model: model["Name"])
def test_model(model):
    path = ROOT / model["Config"]
    assert model["Name"] == path.stem
    cfg = Config.fromfile(path)
    with torch.device("meta"):
        parts = MSVMamba(cfg.model.backbone.arch, out_indices=(3,)), torch.nn.Linear(cfg.model.head.in_channels, 1000)
    assert model["Metadata"]["Parameters"] == sum(p.numel() for part in parts for p in part.parameters())
    assert all(result["Reported By"] == "authors" for result in model["Results"])
    top1 = model["Results"][0]["Metrics"]["Top 1 Accuracy"]
    readme = (ROOT / "README.md").read_text()
    assert f" {top1}" in next(line for line in readme.splitlines() if line.startswith("| classification, ImageNet"))
    if "Converted From" in model:
        folder, name = model["Converted From"]["Weights"].rsplit("/", 1)
        assert f"{folder}/msvmambav3_{{tiny,small,base}}_224.pth" in readme
        assert name == f"msvmamba{cfg.model.backbone.arch}_224.pth"
