"""The official implementations' numbers (computed in float64), reproduced."""

import pytest
import torch
from mmpretrain.registry import MODELS as MMPRETRAIN_MODELS

from mmmsv.checkpoints.layout import from_authors
from mmmsv.models import MSVMamba

from .golden import FILES, WITH_GRADIENTS, arch_of, load_golden

TOLERANCE = {torch.float32: 1e-4, torch.float64: 1e-6}


def assert_near(ours, theirs, tolerance):
    """Within ``tolerance`` of the largest absolute value."""
    assert ours.shape == theirs.shape
    assert (ours.detach().double() - theirs.double()).abs().max() <= tolerance * theirs.abs().max()


def of_backbone(weights, arch):
    """Names of ours for those of a dense backbone, weights or gradients."""
    theirs = {f"backbone.{name}": value for name, value in weights.items() if not name.startswith("classifier.")}
    return {name.removeprefix("backbone."): value for name, value in from_authors(theirs, arch).items()}


def load_backbone(golden, dtype):
    model = MSVMamba(arch_of(golden["meta"]), drop_path_rate=0.5)
    model.load_state_dict(of_backbone({**golden["model"], **golden["outnorm"]}, model.arch))
    return model.to(dtype).eval()


def test_all_files_are_there():
    assert len(FILES) == 8
    assert set(WITH_GRADIENTS) == {name for name in FILES if "grad_params" in load_golden(name)["cases"][0]}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("name", FILES)
def test_features(name, dtype):
    golden = load_golden(name)
    model = load_backbone(golden, dtype)
    for case in golden["cases"]:
        features = model(case["input"].to(dtype))
        assert len(features) == 4
        for ours, theirs in zip(features, case["features"], strict=True):
            assert_near(ours, theirs, TOLERANCE[dtype])


@pytest.mark.parametrize("with_cp", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("name", WITH_GRADIENTS)
def test_gradients(name, dtype, with_cp):
    golden = load_golden(name)
    model = load_backbone(golden, dtype)
    for stage in model.stages:
        stage.with_cp = with_cp
    case = golden["cases"][0]
    image = case["input"].to(dtype).requires_grad_()
    sum((f * torch.arange(f.numel(), dtype=dtype).cos().view_as(f)).sum() for f in model(image)).backward()
    assert_near(image.grad, case["grad_input"], TOLERANCE[dtype])
    theirs = of_backbone(case["grad_params"], model.arch)
    ours = dict(model.named_parameters())
    assert ours.keys() == theirs.keys()
    for key, parameter in ours.items():
        assert_near(parameter.grad, theirs[key], TOLERANCE[dtype])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("name", FILES)
def test_logits_of_mmpretrains_classifier(name, dtype):
    golden = load_golden(name)
    meta = golden["meta"]
    classifier = MMPRETRAIN_MODELS.build(
        {
            "type": "ImageClassifier",
            "_scope_": "mmpretrain",
            "backbone": {"type": "mmmsv.MSVMamba", "arch": arch_of(meta), "out_indices": (3,)},
            "neck": {"type": "GlobalAveragePooling"},
            "head": {"type": "LinearClsHead", "num_classes": 10, "in_channels": meta["embed_dims"][-1]},
        }
    )
    classifier.load_state_dict(from_authors(golden["model"], classifier.backbone.arch))
    classifier.to(dtype).eval()
    for case in golden["cases"]:
        assert_near(classifier(case["input"].to(dtype), mode="tensor"), case["logits"], TOLERANCE[dtype])
