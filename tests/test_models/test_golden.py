"""The official implementations' numbers (computed in float64), reproduced with weights loaded as users load them.

Once from the authors' file itself through ``AuthorsCheckpoint``, once from the converter's through MMEngine's own
``Pretrained``. Where there is a GPU, features and gradients are computed there, too, by what runs on GPUs.
"""

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from mmengine.registry import MODELS

from mmmsv.checkpoints.translation import from_authors
from mmmsv.models import MSVMamba

from .golden import FILES, WITH_GRADIENTS, arch_of, load_golden

CONVERTER = Path(__file__).parents[2] / "tools" / "convert_checkpoint.py"
TOLERANCE = {torch.float32: 1e-4, torch.float64: 1e-6}
DEVICES = {"cpu": "cpu", **({"gpu": "cuda"} if torch.cuda.is_available() else {})}


def assert_near(ours, theirs, tolerance):
    """Within ``tolerance`` of the largest absolute value."""
    assert ours.shape == theirs.shape
    assert (ours.detach().double().cpu() - theirs.double()).abs().max() <= tolerance * theirs.abs().max()


def of_dense(weights):
    """The authors' names in a detector, of a classifier's weights with output norms."""
    return {f"backbone.{name}": value for name, value in weights.items() if not name.startswith("classifier.")}


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """Each golden file as a classifier's and as a detector's checkpoint of the authors."""
    folder = tmp_path_factory.mktemp("golden")
    for name in FILES:
        golden = load_golden(name)
        torch.save({"model": golden["model"]}, folder / f"classifier_{name}")
        torch.save({"state_dict": of_dense({**golden["model"], **golden["outnorm"]})}, folder / f"dense_{name}")
    return folder


@pytest.fixture(scope="module")
def converted(files):
    """The same, converted."""
    # One process for all: starting it takes longer than converting.
    program = (
        "import runpy, sys\n"
        f"for name in {[path.name for path in files.glob('*.pt')]!r}:\n"
        f"    sys.argv = ['convert', {str(files)!r} + '/' + name, {str(files / 'converted')!r} + '/' + name]\n"
        f"    runpy.run_path({str(CONVERTER)!r}, run_name='__main__')\n"
    )
    subprocess.run([sys.executable, "-c", program], check=True, capture_output=True)
    return files / "converted"


@pytest.fixture
def init_cfg(files, how, request):
    """A function of a file's name: what initialises a backbone, or a whole model, with it."""
    if how == "authors":
        return lambda name, **_: {"type": "mmmsv.AuthorsCheckpoint", "checkpoint": str(files / name)}
    folder = request.getfixturevalue("converted")

    def pretrained(name, **prefix):
        (path,) = folder.glob(f"{Path(name).stem}-????????.pt")
        return {"type": "Pretrained", "checkpoint": str(path), **prefix}

    return pretrained


def load_backbone(init_cfg, name, device, dtype):
    arch = arch_of(load_golden(name)["meta"])
    model = MSVMamba(arch, drop_path_rate=0.5, init_cfg=init_cfg(f"dense_{name}", prefix="backbone."))
    model.init_weights()
    return model.to(device, dtype).eval()


@pytest.fixture(autouse=True)
def whole_float32(monkeypatch):
    """By themselves convolutions of a GPU round what they multiply to ten bits."""
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)


def test_all_files_are_there():
    assert len(FILES) == 8
    assert set(WITH_GRADIENTS) == {name for name in FILES if "grad_params" in load_golden(name)["cases"][0]}


@pytest.mark.parametrize("how", ["authors", "converted"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("device", DEVICES.values(), ids=DEVICES)
def test_features(init_cfg, device, name, dtype):
    model = load_backbone(init_cfg, name, device, dtype)
    for case in load_golden(name)["cases"]:
        features = model(case["input"].to(device, dtype))
        assert len(features) == 4
        for ours, theirs in zip(features, case["features"], strict=True):
            assert_near(ours, theirs, TOLERANCE[dtype])


@pytest.mark.parametrize("how", ["authors", "converted"])
@pytest.mark.parametrize("with_cp", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("name", WITH_GRADIENTS)
@pytest.mark.parametrize("device", DEVICES.values(), ids=DEVICES)
def test_gradients(init_cfg, device, name, dtype, with_cp):
    model = load_backbone(init_cfg, name, device, dtype)
    for block in (block for stage in model.stages for block in stage.blocks):
        block.with_cp = with_cp
    case = load_golden(name)["cases"][0]
    image = case["input"].to(device, dtype).requires_grad_()
    sum((f * torch.arange(f.numel(), dtype=dtype).cos().view_as(f).to(device)).sum() for f in model(image)).backward()
    assert_near(image.grad, case["grad_input"], TOLERANCE[dtype])
    theirs = from_authors(of_dense(case["grad_params"]), model.arch)
    ours = {f"backbone.{name}": parameter.grad for name, parameter in model.named_parameters()}
    assert ours.keys() == theirs.keys()
    for key, gradient in ours.items():
        assert_near(gradient, theirs[key], TOLERANCE[dtype])


@pytest.mark.parametrize("how", ["authors", "converted"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("name", FILES)
def test_logits_of_mmpretrains_classifier(init_cfg, name, dtype):
    pytest.importorskip("mmpretrain.models")
    golden = load_golden(name)
    meta = golden["meta"]
    classifier = MODELS.build(
        {
            "type": "ImageClassifier",
            "_scope_": "mmpretrain",
            "backbone": {"type": "mmmsv.MSVMamba", "arch": arch_of(meta), "out_indices": (3,)},
            "neck": {"type": "GlobalAveragePooling"},
            "head": {"type": "LinearClsHead", "num_classes": 10, "in_channels": meta["embed_dims"][-1]},
            "init_cfg": init_cfg(f"classifier_{name}"),
        }
    )
    classifier.init_weights()
    classifier.to(dtype).eval()
    for case in golden["cases"]:
        assert_near(classifier(case["input"].to(dtype), mode="tensor"), case["logits"], TOLERANCE[dtype])
