"""Class activation maps follow the formula of Grad-CAM, for classes and for boxes."""

import re
from argparse import Namespace

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn.functional import interpolate

from mmmsv.analysis.cam import Activation, class_activation
from mmmsv.analysis.figures.cam import arrays, draw
from mmmsv.analysis.flops import Classifier
from mmmsv.analysis.networks import Network, load_network
from mmmsv.analysis.speed.models import Stages
from tests.test_tools.load import load_tool

from .small import photograph, small_network

DETECTOR = """
_base_ = 'mmdet::_base_/models/mask-rcnn_r50_fpn.py'
default_scope = 'mmdet'
model = dict(
    backbone=dict(
        _delete_=True, type='mmmsv.MSVMamba', arch=dict(base='nano', embed_dims=(8, 16, 16, 16), depths=(1, 1, 1, 1))),
    neck=dict(in_channels=[8, 16, 16, 16], out_channels=8),
    rpn_head=dict(in_channels=8, feat_channels=8),
    roi_head=dict(
        bbox_roi_extractor=dict(out_channels=8),
        bbox_head=dict(in_channels=8, fc_out_channels=8, num_classes=2),
        mask_roi_extractor=dict(out_channels=8),
        mask_head=dict(in_channels=8, conv_out_channels=8, num_convs=1, num_classes=2)),
    test_cfg=dict(rpn=dict(nms_pre=20, max_per_img=10), rcnn=dict(score_thr=0.0, max_per_img=5)))
test_dataloader = dict(dataset=dict(type='CocoDataset', metainfo=dict(classes=('cat', 'dog'))))
"""


@pytest.fixture(scope="module")
def detector(tmp_path_factory):
    pytest.importorskip("mmdet")
    path = tmp_path_factory.mktemp("configs") / "small_mask_rcnn.py"
    path.write_text(DETECTOR)
    return load_network(str(path))


def linear_classifier() -> Network:
    """A map of patches, the mean over it, and a linear layer."""
    torch.manual_seed(0)
    return Network(
        "linear",
        "random weights",
        Classifier(Stages([nn.Conv2d(3, 4, 8, 8), nn.Conv2d(4, 5, 2, 2)], False), 5, 3).eval(),
        classes=("cat", "dog"),
    )


@pytest.mark.parametrize("target", [None, 0, 2])
def test_of_a_linear_classifier_it_is_the_weighted_map(target):
    """With the mean for pooling the gradient of a logit is the class's weights over the number of tokens."""
    network = linear_classifier()
    activation = class_activation(network, photograph(height=32, width=64), target)
    with torch.no_grad():
        image = network.prepare([photograph(height=32, width=64)])
        last, logits = network.model.backbone(image)[-1][0], network.model(image)[0]
    target = int(logits.argmax()) if target is None else target
    expected = torch.einsum("c,chw->hw", network.model.head.weight[target] / 8, last).clamp(min=0)
    np.testing.assert_allclose(activation.values, expected.detach(), rtol=1e-5, atol=1e-7)
    assert activation.values.shape == (2, 4)
    assert activation.values.any()
    assert (activation.label, activation.stage, activation.box) == (["cat", "dog", "class 2"][target], 1, None)
    assert str(activation) == f"{activation.label}, logit {logits[target]:.2f}"
    assert all(weight.requires_grad and weight.grad is None for weight in network.model.parameters())  # as they were
    assert not network.model.backbone._forward_hooks


def test_stages_are_those_that_the_backbone_returns():
    network = small_network()
    assert class_activation(network, photograph()).stage == 1
    assert class_activation(network, photograph(), 2, 1).values.shape == (8, 8)
    with pytest.raises(ValueError, match="output of small for class 2 does not depend on stage 0; choose another"):
        class_activation(network, photograph(), 2, 0)  # the head takes the last map
    with pytest.raises(ValueError, match="the backbone of small returns no map of stage 2; choose 0, 1, or -1 for the"):
        class_activation(network, photograph(), stage=2)


def test_of_a_detector_it_is_of_a_box(detector):
    picture = photograph()
    best, second = class_activation(detector, picture), class_activation(detector, picture, 1, 2)
    assert (best.stage, best.values.shape, second.values.shape) == (3, (2, 2), (4, 4))
    for activation in (best, second):
        assert np.isfinite(activation.values).all()
        left, top, right, bottom = activation.box
        assert 0 <= left < right <= 64
        assert 0 <= top < bottom <= 64
        assert activation.label in ("cat", "dog")
    assert best.output >= second.output
    assert str(best) == f"{best.label}, score {best.output:.2f}"


def test_a_box_that_is_not_there(detector):
    with pytest.raises(
        ValueError, match=r"there is no box 5: small_mask_rcnn finds 5 in noise, so give 0 \(the best\) to 4"
    ):
        class_activation(detector, photograph(), 5)
    test_cfg = detector.model.roi_head.test_cfg
    test_cfg.score_thr = 1.0
    with pytest.raises(
        ValueError, match="small_mask_rcnn, random weights, finds nothing in noise; give the checkpoint"
    ):
        class_activation(detector, photograph())
    test_cfg.score_thr = 0.0


class Segmentor(nn.Module):
    """Returns a map of logits."""

    def __init__(self) -> None:
        super().__init__()
        self.backbone = Stages([nn.Conv2d(3, 4, 8, 8)], False)

    def forward(self, image: Tensor) -> Tensor:
        return self.backbone(image)[-1]


@pytest.mark.parametrize(
    ("network", "message"),
    [
        (Network("linear", "", Segmentor()), "linear (Segmentor) neither classifies nor finds boxes; give an arch, or"),
        (
            Network("flat", "", Classifier(nn.Flatten(), 1, 1)),
            "the backbone, a Flatten, returns no maps (B, C, h, w), whose activation can be shown; give a",
        ),
        (
            Network("resnet18", "", nn.Flatten()),
            "resnet18 has no backbone whose maps are known; give an arch, or a conf",
        ),
        (
            Network("nano", "body.pth", Classifier(nn.Flatten(), 1, 1), ("backbone.out_norms.3.weight", "head.weight")),
            "body.pth has no head.weight, which would be random in nano; give the checkpoint of a classifier",
        ),
    ],
)
def test_networks_that_have_no_such_output(network, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        class_activation(network, photograph())


def test_a_class_that_is_not_there():
    with pytest.raises(ValueError, match="there is no class 3: linear has 3, so give 0 to 2"):
        class_activation(linear_classifier(), photograph(), 3)


def test_numbers_that_are_not_finite():
    network = linear_classifier()
    with torch.no_grad():
        network.model.head.bias.fill_(torch.nan)
    with pytest.raises(ValueError, match="linear, random weights computes infinite numbers or NaN; give other weights"):
        class_activation(network, photograph())


def test_photographs_of_one_name_would_replace_each_other(tmp_path):
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
        Image.fromarray(photograph().pixels).save(tmp_path / folder / "noise.png")
    out = tmp_path / "out"
    args = Namespace(model=["resnet18"], checkpoint=None, photographs=tmp_path, size=32, out=out, target=None, stage=-1)
    with pytest.raises(ValueError, match="several photographs are called noise, and so would their figures be"):
        load_tool("cam").make(args)
    assert not out.exists()


def test_pytorch_grad_cam_gives_the_same_map():
    """Its target layer is the output norm, with no reshaping; it scales a map to 0..1 and to the size of the image."""
    cam = pytest.importorskip("pytorch_grad_cam", reason="pytorch-grad-cam (grad-cam of PyPI) is not installed")
    from pytorch_grad_cam.utils.model_targets import ClassifierOutputTarget

    network, picture = small_network(), photograph(height=32, width=64)
    ours = torch.from_numpy(class_activation(network, picture, 1).values)
    with cam.GradCAM(model=network.model, target_layers=[network.backbone.out_norms["1"]]) as theirs:
        (expected,) = theirs(input_tensor=network.prepare([picture]), targets=[ClassifierOutputTarget(1)])
    assert ours.any()
    smooth = interpolate(ours[None, None], picture.shape, mode="bilinear")[0, 0]
    scaled = (smooth - smooth.min()) / (smooth.max() - smooth.min())
    np.testing.assert_allclose(scaled, expected, rtol=0, atol=1e-4)


def test_the_figure_has_the_photograph_and_a_panel_for_each_network():
    boxed = Activation(np.array([[0.0, 2.0]]), 3, "cat", 0.9, (8.0, 4.0, 24.0, 30.0))
    nothing = Activation(np.zeros((1, 2)), 2, "class 7", -1.0)  # all of it speaks against the class
    figure = draw({"detector, epoch_12.pth": boxed, "tiny, random weights": nothing}, photograph(height=32, width=64))
    _, first, second = (axes for axes in figure.axes if axes.images)
    assert first.get_title() == "detector, epoch_12.pth\ncat, score 0.90, stage 3"
    values = first.images[-1].get_array()
    assert values.shape == (32, 64)
    assert (values.min(), values.max()) == (0, 1)
    assert [patch.get_bbox().bounds for patch in first.patches] == [(8, 4, 16, 26)]
    assert not second.images[-1].get_array().any()
    assert not second.patches
    assert arrays(boxed)["box"] == (8.0, 4.0, 24.0, 30.0)
