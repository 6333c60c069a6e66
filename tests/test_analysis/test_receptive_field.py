"""The receptive field of a convolution is its kernel; squares, and what has no receptive field."""

import re
import sys
from argparse import Namespace

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from mmmsv.analysis.figures.receptive_field import arrays, draw
from mmmsv.analysis.figures.style import new_panels, wrap
from mmmsv.analysis.flops import build_classifier
from mmmsv.analysis.networks import Network, load_network
from mmmsv.analysis.photographs import Photograph
from mmmsv.analysis.receptive_field import ReceptiveField, receptive_field
from mmmsv.analysis.speed.models import Stages
from tests.test_tools.load import load_tool

from .small import photograph, small_network

KERNEL = torch.tensor([[1.0, 2.0, 3.0], [4.0, 5.0, 6.0], [7.0, 8.0, 9.0]])


def convolutions(*layers: nn.Module) -> Network:
    """A network of convolutions without biases, which see what is positive."""
    return Network("convolutions", "of the test", nn.ModuleDict({"backbone": Stages(layers, False)}).eval())


def with_kernel(kernel: torch.Tensor, channels: int, stride: int = 1) -> nn.Conv2d:
    side = kernel.shape[-1]
    layer = nn.Conv2d(channels, 1, side, stride, 0 if stride > 1 else side // 2, bias=False)
    layer.weight.data = kernel.expand(1, channels, side, side).clone()
    return layer


def white(height: int = 33, width: int = 35) -> Photograph:
    return Photograph("white", np.full((height, width, 3), 255, dtype=np.uint8), (width, height))


def test_of_a_convolution_it_is_the_kernel():
    field = receptive_field(convolutions(with_kernel(KERNEL, 3)), [white()])
    expected = np.zeros((33, 35))
    expected[15:18, 16:19] = 3 * KERNEL  # of three colours
    assert field.centre == (16, 17)
    assert np.array_equal(field.gradient, expected)
    # 5 of 45 is in the middle.
    assert [field.side(share) for share in (0.1, 5 / 45, 0.12, 1)] == [1, 1, 3, 3]


def test_of_two_convolutions_it_is_the_convolution_of_their_kernels():
    """The absolute value is taken at the end: a negative second kernel changes signs, and a negative map has none."""
    first, second = KERNEL, KERNEL.T.contiguous()
    field = receptive_field(convolutions(with_kernel(first, 3), with_kernel(second, 1)), [white(), white()])
    both = nn.functional.conv2d(second[None, None], first.flip(0, 1)[None, None], padding=2)[0, 0]
    expected = np.zeros((33, 35))
    expected[14:19, 15:20] = 3 * both
    assert np.array_equal(field.gradient, expected)
    assert field.side(1) == 5
    with pytest.raises(
        ValueError, match="the central token of convolutions, of the test, has a gradient of 0: no chan"
    ):
        receptive_field(convolutions(with_kernel(-first, 3)), [white()])


def test_of_a_patch_it_is_the_patch():
    """On an even map the central token is the one below and right of the middle, and its squares are around it."""
    field = receptive_field(convolutions(with_kernel(torch.ones(8, 8), 3, stride=8)), [white(32, 64)])
    rows, columns = field.gradient.nonzero()
    assert (rows.min(), rows.max(), columns.min(), columns.max()) == (16, 23, 32, 39)
    assert field.centre == (19.5, 35.5)
    assert [field.side(share) for share in (4 / 64, 16 / 64, 17 / 64, 1)] == [2, 4, 6, 8]


def test_squares():
    gradient = np.zeros((10, 12))
    gradient[5, 6], gradient[5, 9], gradient[0, 0] = 5, 3, 2
    field = ReceptiveField(gradient, (5, 6))
    assert [field.side(share) for share in (0.2, 0.5, 0.51, 0.8, 0.9)] == [1, 1, 7, 7, 12]  # 13 are more than there are
    assert field.sides == {0.2: 1, 0.5: 1, 0.9: 12, 0.99: 12}
    uniform = ReceptiveField(np.ones((10, 10)), (4.5, 4.5))
    assert uniform.sides == {0.2: 6, 0.5: 8, 0.9: 10, 0.99: 10}


def test_photographs_are_averaged():
    network, pictures = small_network(), [photograph(seed=0), photograph(seed=1)]
    weights = [weight for weight in network.model.parameters() if weight.requires_grad]
    both = receptive_field(network, iter(pictures))
    each = [receptive_field(network, [picture]).gradient for picture in pictures]
    np.testing.assert_allclose(both.gradient, (each[0] + each[1]) / 2)
    assert both.gradient.shape == (64, 64)
    assert all(weight.requires_grad and weight.grad is None for weight in weights)  # as they were


def test_networks_without_a_map():
    with pytest.raises(ValueError, match="the four stages of squeezenet1_1 are not known here, only those of torchvis"):
        receptive_field(load_network("squeezenet1_1"), [photograph()])
    no_map = nn.ModuleDict({"backbone": nn.Sequential(nn.Flatten(), nn.Linear(3 * 64 * 64, 2))})
    with pytest.raises(ValueError, match=r"the backbone of other, a Sequential, returns no map \(B, C, h, w\); give a"):
        receptive_field(Network("other", "random weights", no_map), [photograph()])


def test_deit_looks_everywhere(tmp_path):
    pytest.importorskip("mmpretrain")
    network = load_network("deit_small")
    assert network.title == "deit_small, random weights"
    assert (receptive_field(network, [photograph()]).gradient > 0).all()
    weights = network.model.state_dict()
    torch.save({**weights, "head.layers.head.weight": torch.zeros(1000, 384)}, tmp_path / "deit.pth")
    assert load_network("deit_small", str(tmp_path / "deit.pth")).title == "deit_small, deit.pth"


def test_deit_without_mmpretrain(monkeypatch):
    monkeypatch.setitem(sys.modules, "mmpretrain.models", None)
    with pytest.raises(ValueError, match=r"deit_small is for mmpretrain, which cannot be imported .*'mmmsv\[cls\]'"):
        load_network("deit_small")


@pytest.mark.parametrize(
    ("pictures", "message"),
    [
        ([], "there is no photograph to compute the receptive field with; give one at least"),
        ([white(), white(32)], "white has (32, 35) pixels (H, W), and the first photograph (33, 35)"),
    ],
)
def test_photographs_that_do_not_fit(pictures, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        receptive_field(convolutions(with_kernel(KERNEL, 3)), pictures)


def test_the_figure_has_a_panel_for_each_network():
    gradient = np.zeros((512, 1024))
    gradient[256:260, 510:516] = 3.0
    fields = {f"network {i}, random weights": ReceptiveField(gradient, (257.5, 512.5)) for i in range(5)}
    figure = draw(fields, "noise, 512 x 512")
    panels = [axes for axes in figure.axes if axes.images]
    assert [axes.get_title().split(",")[0] for axes in panels] == [f"network {i}" for i in range(5)]
    assert {axes.images[0].get_array().shape for axes in panels} == {(128, 256)}
    assert {axes.images[0].get_array().max() for axes in panels} == {1.0}  # relative to the largest
    assert "99 %: 6 px" in panels[0].get_xlabel()
    assert len(panels[0].patches) == 4
    assert arrays(fields["network 0, random weights"])["side"] == [4, 4, 6, 6]


def test_squares_that_are_drawn_hold_their_shares():
    """Half a patch off the middle, a square of the photograph's side would leave out what is on the left."""
    gradient = np.zeros((64, 64))
    gradient[:, 0] = gradient[40, 40] = 1.0
    field = ReceptiveField(gradient, (39.5, 39.5))
    (panel, *_) = draw({"network": field}, "noise, 64 x 64").axes
    for square, (share, side) in zip(panel.patches, field.sides.items(), strict=True):
        left, top, width, height = square.get_bbox().bounds
        left, top = round(left + 0.5), round(top + 0.5)
        assert (width, height) == (side, side)
        assert min(left, top) >= 0
        assert gradient[top : top + side, left : left + side].sum() >= share * gradient.sum()


def test_a_network_with_a_checkpoint_is_shown_before_training_too(tmp_path, capsys, monkeypatch):
    torch.save(build_classifier("MSVMamba", "nano").state_dict(), tmp_path / "epoch_1.pth")
    Image.fromarray(photograph().pixels).save(tmp_path / "noise.png")
    monkeypatch.chdir(tmp_path)
    tool = load_tool("receptive_field")
    line = "receptive_field noise.png --size 32 --out . --model resnet18 nano --checkpoint none epoch_1.pth"
    monkeypatch.setattr(sys, "argv", line.split())
    tool.main()
    titles = ["resnet18, random weights", "MSVMamba nano, random weights", "MSVMamba nano, epoch_1.pth"]
    content = np.load("receptive_field.npz")
    assert content["networks"].tolist() == titles
    assert content["2_gradient"].shape == (32, 32)
    head, *rows, path = capsys.readouterr().out.splitlines()
    assert head.split() == ["px", "20", "%", "50", "%", "90", "%", "99", "%"]
    for row, title, i in zip(rows, titles, "012", strict=True):
        assert row.startswith(title)
        assert [int(side) for side in row.removeprefix(title).split()] == content[f"{i}_side"].tolist()
    assert path == "receptive_field.png"


def test_titles_are_broken_where_they_are_wider_than_the_panel():
    _, (first, *_) = new_panels("title", 4, 1, 0.6)
    assert wrap("msvmamba_n_ss2d_clothing_mini, epoch_20.pth", first) == (
        "msvmamba_n_ss2d_\nclothing_mini, epoch_\n20.pth"
    )
    _, panels = new_panels("title", 5, 1, 0.6)
    assert len(panels) == 5
    assert wrap("MSVMamba tiny, random weights", panels[0]) == "MSVMamba tiny, random weights"


def test_a_network_without_maps_is_refused_before_the_others_are_computed(tmp_path, capsys):
    Image.fromarray(photograph().pixels).save(tmp_path / "one.png")
    args = Namespace(photographs=tmp_path, model=["nano", "squeezenet1_1"], checkpoint=None, size=32, out=tmp_path)
    with pytest.raises(ValueError, match="the four stages of squeezenet1_1 are not known here"):
        load_tool("receptive_field").make(args)
    assert capsys.readouterr().out == ""
