"""The official implementation's numbers (computed in float64), reproduced."""

import pytest
import torch
from mmpretrain.registry import MODELS as MMPRETRAIN_MODELS

from mmmsv.models import MSVMamba

from .golden import arch_of, backbone_weights, load_golden

TOLERANCE = {torch.float32: 1e-4, torch.float64: 1e-6}
FILES = ("arxiv.pt", "arxiv_state4_plain.pt", "arxiv_full2_half2.pt", "arxiv_full3_half1.pt")


def assert_near(ours, theirs, tolerance):
    """Within ``tolerance`` of the largest absolute value."""
    assert ours.shape == theirs.shape
    assert (ours.detach().double() - theirs.double()).abs().max() <= tolerance * theirs.abs().max()


def load_backbone(golden, dtype):
    sets = golden["meta"]["full_routes"] + 1
    model = MSVMamba(arch_of(golden["meta"]), drop_path_rate=0.5)
    model.load_state_dict(backbone_weights({**golden["model"], **golden["outnorm"]}, sets))
    return model.to(dtype).eval()


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
@pytest.mark.parametrize("name", ["arxiv.pt", "arxiv_state4_plain.pt"])
def test_gradients(name, dtype, with_cp):
    golden = load_golden(name)
    model = load_backbone(golden, dtype)
    for stage in model.stages:
        stage.with_cp = with_cp
    case = golden["cases"][0]
    image = case["input"].to(dtype).requires_grad_()
    sum((f * torch.arange(f.numel(), dtype=dtype).cos().view_as(f)).sum() for f in model(image)).backward()
    assert_near(image.grad, case["grad_input"], TOLERANCE[dtype])
    theirs = backbone_weights(case["grad_params"], golden["meta"]["full_routes"] + 1)
    ours = dict(model.named_parameters())
    assert ours.keys() == theirs.keys()
    for key, parameter in ours.items():
        assert_near(parameter.grad, theirs[key], TOLERANCE[dtype])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("name", FILES)
def test_logits_of_mmpretrains_classifier(name, dtype):
    golden = load_golden(name)
    meta, weights = golden["meta"], golden["model"]
    classifier = MMPRETRAIN_MODELS.build(
        {
            "type": "ImageClassifier",
            "_scope_": "mmpretrain",
            "backbone": {"type": "mmmsv.MSVMamba", "arch": arch_of(meta), "out_indices": (3,)},
            "neck": {"type": "GlobalAveragePooling"},
            "head": {"type": "LinearClsHead", "num_classes": 10, "in_channels": meta["embed_dims"][-1]},
        }
    )
    norm = {f"outnorm3.{part}": weights[f"classifier.norm.{part}"] for part in ("weight", "bias")}
    classifier.backbone.load_state_dict(backbone_weights({**weights, **norm}, meta["full_routes"] + 1))
    classifier.head.fc.load_state_dict({part: weights[f"classifier.head.{part}"] for part in ("weight", "bias")})
    classifier.to(dtype).eval()
    for case in golden["cases"]:
        assert_near(classifier(case["input"].to(dtype), mode="tensor"), case["logits"], TOLERANCE[dtype])
