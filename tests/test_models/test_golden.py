"""The official implementations' numbers (computed in float64), reproduced with weights loaded as users load them.

Once from the authors' file itself through ``AuthorsCheckpoint``, once from the converter's through MMEngine's own
``Pretrained``.
"""

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from mmpretrain.registry import MODELS as MMPRETRAIN_MODELS

from mmmsv.checkpoints.translation import from_authors
from mmmsv.models import MSVMamba

from .golden import FILES, WITH_GRADIENTS, arch_of, load_golden

CONVERTER = Path(__file__).parents[2] / "tools" / "convert_checkpoint.py"
TOLERANCE = {torch.float32: 1e-4, torch.float64: 1e-6}


def assert_near(ours, theirs, tolerance):
    """Within ``tolerance`` of the largest absolute value."""
    assert ours.shape == theirs.shape
    assert (ours.detach().double() - theirs.double()).abs().max() <= tolerance * theirs.abs().max()


def of_dense(weights):
    """The authors' names in a detector, of a classifier's weights with output norms."""
    return {f"backbone.{name}": value for name, value in weights.items() if not name.startswith("classifier.")}


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """Each golden file as a classifier's and as a detector's checkpoint, the authors' and converted."""
    folder = tmp_path_factory.mktemp("golden")
    conversions = []
    for name in FILES:
        golden = load_golden(name)
        torch.save({"model": golden["model"]}, folder / f"classifier_{name}")
        torch.save({"state_dict": of_dense({**golden["model"], **golden["outnorm"]})}, folder / f"dense_{name}")
        conversions += [f"{kind}_{name}" for kind in ("classifier", "dense")]
    # One process for all: starting it takes longer than converting.
    program = (
        "import runpy, sys\n"
        f"for name in {conversions!r}:\n"
        f"    sys.argv = ['convert', {str(folder)!r} + '/' + name, {str(folder / 'converted')!r} + '/' + name]\n"
        f"    runpy.run_path({str(CONVERTER)!r}, run_name='__main__')\n"
    )
    subprocess.run([sys.executable, "-c", program], check=True, capture_output=True)
    return folder


def init_cfg(files, name, how, whole):
    """What initialises a model (``whole``), or a backbone, with a file."""
    if how == "authors":
        return {"type": "mmmsv.AuthorsCheckpoint", "checkpoint": str(files / name)}
    path = next((files / "converted").glob(f"{Path(name).stem}-????????.pt"))
    return {"type": "Pretrained", "checkpoint": str(path), **({} if whole else {"prefix": "backbone."})}


def load_backbone(files, name, how, dtype):
    arch = arch_of(load_golden(name)["meta"])
    model = MSVMamba(arch, drop_path_rate=0.5, init_cfg=init_cfg(files, f"dense_{name}", how, whole=False))
    model.init_weights()
    return model.to(dtype).eval()


def test_all_files_are_there():
    assert len(FILES) == 8
    assert set(WITH_GRADIENTS) == {name for name in FILES if "grad_params" in load_golden(name)["cases"][0]}


@pytest.mark.parametrize("how", ["authors", "converted"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("name", FILES)
def test_features(files, name, dtype, how):
    model = load_backbone(files, name, how, dtype)
    for case in load_golden(name)["cases"]:
        features = model(case["input"].to(dtype))
        assert len(features) == 4
        for ours, theirs in zip(features, case["features"], strict=True):
            assert_near(ours, theirs, TOLERANCE[dtype])


@pytest.mark.parametrize("how", ["authors", "converted"])
@pytest.mark.parametrize("with_cp", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("name", WITH_GRADIENTS)
def test_gradients(files, name, dtype, with_cp, how):
    model = load_backbone(files, name, how, dtype)
    for stage in model.stages:
        stage.with_cp = with_cp
    case = load_golden(name)["cases"][0]
    image = case["input"].to(dtype).requires_grad_()
    sum((f * torch.arange(f.numel(), dtype=dtype).cos().view_as(f)).sum() for f in model(image)).backward()
    assert_near(image.grad, case["grad_input"], TOLERANCE[dtype])
    theirs = from_authors(of_dense(case["grad_params"]), model.arch)
    ours = {f"backbone.{name}": parameter.grad for name, parameter in model.named_parameters()}
    assert ours.keys() == theirs.keys()
    for key, gradient in ours.items():
        assert_near(gradient, theirs[key], TOLERANCE[dtype])


@pytest.mark.parametrize("how", ["authors", "converted"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("name", FILES)
def test_logits_of_mmpretrains_classifier(files, name, dtype, how):
    golden = load_golden(name)
    meta = golden["meta"]
    classifier = MMPRETRAIN_MODELS.build(
        {
            "type": "ImageClassifier",
            "_scope_": "mmpretrain",
            "backbone": {"type": "mmmsv.MSVMamba", "arch": arch_of(meta), "out_indices": (3,)},
            "neck": {"type": "GlobalAveragePooling"},
            "head": {"type": "LinearClsHead", "num_classes": 10, "in_channels": meta["embed_dims"][-1]},
            "init_cfg": init_cfg(files, f"classifier_{name}", how, whole=True),
        }
    )
    classifier.init_weights()
    classifier.to(dtype).eval()
    for case in golden["cases"]:
        assert_near(classifier(case["input"].to(dtype), mode="tensor"), case["logits"], TOLERANCE[dtype])
