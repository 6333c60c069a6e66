"""The counter meets the figures that the authors report, and counts by hand; bad input ends in one sentence.

All published figures here are results reported by the authors of MSVMamba and VMamba.
"""

import sys

import pytest
import torch
from mmengine.registry import DefaultScope
from torch import nn
from torch.nn.functional import scaled_dot_product_attention

from mmmsv.analysis.flops import Classifier, Macs, build_classifier, build_from_config, count, parameters
from mmmsv.analysis.speed.models import build, full_name
from mmmsv.kernels import selective_scan
from mmmsv.models.layers import ChannelsLastConv2d
from mmmsv.models.s6 import S6
from tests.processes import run_script

from .load import ROOT, load_tool

# GMACs at 224 x 224 with 1000 classes, with the digits that are published; one of each family. All published figures
# are compared by tests/test_configs/test_metafiles.py, which counts one block of each stage.
CLASSIFIERS = {
    "MSVMamba nano": "0.88",
    "MSVMamba v3_tiny": "5.1",
    "VMamba tiny": "5.6",
    "VMamba v2_tiny_s1l8": "4.9",
}


@pytest.mark.slow
@pytest.mark.parametrize("name", CLASSIFIERS)
def test_classifiers_cost_what_is_published(name):
    published = CLASSIFIERS[name]
    macs = count(build_classifier(*name.split()), (224, 224))
    assert f"{macs.total / 1e9:.{len(published.partition('.')[2])}f}" == published
    # Also without what is neither layer nor scan.
    assert (macs.layers + macs.scan) / 1e9 == pytest.approx(float(published), rel=0.03)


@pytest.mark.slow
def test_mask_rcnn_tiny():
    """252 G are published, most likely those of the row above it, EfficientVMamba-B, which has the same parameters.

    The backbone meets its figure in UperNet, neck and heads meet theirs behind two others. With 100 proposals in the
    place of 1000 it would be 252, but then micro would not be 201.
    """
    model, shape = build_from_config(ROOT / "configs/mask_rcnn/msvmamba_t_1x.py")
    assert round(parameters(model) / 1e6) == 53
    assert round(count(model, shape).total / 1e9) == 265
    assert round(count(model, shape, proposals=100).total / 1e9) == 252


class Scan(nn.Module):
    """A convolution, then a scan of D = 8 channels, N = 2 states and rank R = 3 along three routes, one sequence."""

    def __init__(self):
        super().__init__()
        self.conv = ChannelsLastConv2d(3, 8, 5, padding=2)
        self.scan = S6(8, 2, 3, ("row_rev", "col", "col_rev"), carry=True)

    def forward(self, image):
        return (self.scan(self.conv(image.permute(0, 2, 3, 1)), merge=True).permute(0, 3, 1, 2),)


def test_counts_by_hand():
    model = Classifier(Scan(), 8, 10).eval()
    L, D, N, R, routes = 4 * 6, 8, 2, 3, 3
    conv, head = L * D * 3 * 5 * 5, D * 10

    ours = count(model, (4, 6), ours=True)
    project, step, recurrence = L * D * (R + 2 * N), routes * L * D * R, routes * L * D * (4 * N + 2)
    assert ours == Macs(conv + head + project + step, recurrence, 0)
    assert count(model.backbone, (4, 6), ours=True) == Macs(conv + project + step, recurrence, 0)

    published = count(model, (4, 6))
    project, recurrence = routes * L * D * (R + 2 * N), routes * L * (9 * D * N + D)
    assert published == Macs(conv + head + project + step, recurrence, 0)
    assert published.total == conv + head + project + step + recurrence

    assert parameters(model) == D * 3 * 5 * 5 + D + D * (R + 2 * N) + D * R + D + D * N + D + 10 * D + 10


def test_norms_and_interpolations_by_hand():
    """In MMEngine's counter, too, these count for so much for each number, and an activation for nothing."""
    upsample = nn.Upsample(scale_factor=2, mode="bilinear")
    model = nn.Sequential(nn.BatchNorm2d(3), nn.GroupNorm(1, 3), nn.LayerNorm(6), upsample, nn.ReLU()).eval()
    numbers = 3 * 4 * 6
    assert count(model, (4, 6)) == Macs(0, 0, (2 + 5 + 5) * numbers + 4 * 4 * numbers)
    assert count(model, (4, 6), ours=True) == Macs(0, 0, 0)


@pytest.mark.parametrize("skip", [False, True])
def test_1d_op_by_hand(skip):
    class Scan1d(nn.Module):
        def forward(self, image):
            u, per_state = image.flatten(2), image.flatten(2)[:, :2]
            D = image.new_ones(3) if skip else None
            return (selective_scan(u, u, image.new_ones(3, 2), per_state, per_state, D).view_as(image),)

    model = Classifier(Scan1d(), 3, 1).eval()
    assert count(model, (4, 6)).scan == 4 * 6 * (9 * 3 * 2 + 3)
    assert count(model, (4, 6), ours=True).scan == 4 * 6 * 3 * (4 * 2 + 1 + skip)


def test_attention_by_hand():
    """As models write it, by the function, and as torch computes its layer in evaluation mode."""

    class Attention(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.MultiheadAttention(8, 2, batch_first=True)

        def forward(self, image):
            x = image.flatten(2).transpose(1, 2).repeat(1, 1, 3)[..., :8]
            heads = x.unflatten(-1, (2, 4)).transpose(1, 2)
            return self.layer(x, x, x, need_weights=False), scaled_dot_product_attention(heads, heads, heads)

    tokens, channels = 4 * 6, 8
    products = 2 * tokens**2 * channels
    for ours in (False, True):
        assert count(Attention().eval(), (4, 6), ours) == Macs(4 * tokens * channels**2 + 2 * products, 0, 0)


@pytest.mark.parametrize(("name", "published"), [("deit_small", 4.6), ("vit_b_16", 17.6)])
def test_vision_transformers_cost_what_is_published(name, published):
    model = build(full_name(name), maps=False).eval()
    assert round(count(model, (224, 224)).layers / 1e9, 1) == published


def test_nothing_is_left_behind():
    scope = DefaultScope.get_instance("flops", scope_name="mmdet")
    model, shape = build_from_config(ROOT / "configs/cls/msvmamba_n_300e.py")
    before = {name: value.clone() for name, value in model.state_dict().items()}
    count(model, shape)
    assert DefaultScope.get_current_instance().scope_name == scope.scope_name
    assert all(type(value) is torch.Tensor and torch.equal(value, before[n]) for n, value in model.state_dict().items())
    assert model(torch.zeros(1, 3, 32, 32)).isfinite().all()


def config(path, text):
    path.write_text(text)
    return path


def test_another_detector(tmp_path):
    text = """
_base_ = 'mmdet::retinanet/retinanet_r50_fpn_1x_coco.py'
model = dict(
    backbone=dict(_delete_=True, type='mmmsv.MSVMamba', arch='nano'), neck=dict(in_channels=[48, 96, 192, 384]))
"""
    model, shape = build_from_config(config(tmp_path / "retinanet.py", text))
    whole, backbone = count(model, shape), count(model.backbone, shape)
    assert whole.layers > 2 * backbone.layers
    assert whole.scan == backbone.scan


BAD_CONFIGS = {
    "": r"has no model and default_scope None, expected a model and one of mmpretrain, mmdet, mmseg; give a config",
    "default_scope = 'mmpose'\nmodel = dict()": "has a model and default_scope 'mmpose', expected",
    "model = (": "cannot be read as a config: SyntaxError",
    "default_scope = 'mmdet'\nmodel = dict(type='Nobody')": "the model of .* cannot be built: KeyError: .*Nobody",
    "default_scope = 'mmdet'\nmodel = dict(type='L1Loss')": "the model of .*, a L1Loss, has no backbone",
}


@pytest.mark.parametrize("text", BAD_CONFIGS)
def test_bad_config(tmp_path, text):
    with pytest.raises(ValueError, match=BAD_CONFIGS[text]) as error:
        build_from_config(config(tmp_path / "bad.py", text))
    assert "\n" not in str(error.value)


def test_library_that_is_not_installed(monkeypatch):
    monkeypatch.setitem(sys.modules, "mmdet.models", None)
    with pytest.raises(ValueError, match=r"is for mmdet, which cannot be imported .*mmdet.models.*'mmmsv\[det\]'"):
        build_from_config(ROOT / "configs/mask_rcnn/msvmamba_n_1x.py")


def test_bad_arguments():
    with pytest.raises(ValueError, match="there is no backbone 'Mamba'; choose one of MSVMamba, VMamba"):
        build_classifier("Mamba", "tiny")
    with pytest.raises(ValueError, match="VMamba has no arch 'nano'; choose one of tiny, small, base, v2_tiny_s1l8"):
        build_classifier("VMamba", "nano")
    model = build_classifier("MSVMamba", "nano")
    for shape in [(224,), (0, 224), (224.0, 224)]:
        with pytest.raises(ValueError, match="expected H and W, two whole numbers of at least 1"):
            count(model, shape)
    with pytest.raises(
        ValueError, match="Classifier cannot be counted on an image of 2 x 2: ValueError: MSVMamba: the"
    ):
        count(model, (2, 2))


def read(output):
    """Return the first line that the tool prints, and the rows of its table."""
    lines = output.splitlines()
    return lines[0], [[float(number) for number in line.split()[-3:]] for line in lines[3:8]]


def test_tool_with_an_arch(monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", ["", "--model", "VMamba", "--arch", "tiny", "--ours", "--shape", "64", "96"])
    load_tool("get_flops").main()
    output = capsys.readouterr().out
    title, rows = read(output)
    assert title == "VMamba tiny, one image of 64 x 96 (H x W)"
    model = build_classifier("VMamba", "tiny")
    whole, backbone = (count(part, (64, 96), ours=True) for part in (model, model.backbone))
    columns = [
        (parameters(part) / 1e6, *(n / 1e9 for n in (macs.total, macs.layers, macs.scan, 0)))
        for part, macs in ((model, whole), (model.backbone, backbone))
    ]
    assert rows == [
        [pytest.approx(n, abs=6e-4) for n in (total, part, total - part)] for total, part in zip(*columns, strict=True)
    ]
    assert "multiply-adds that this code makes" in output


@pytest.mark.slow
def test_tool_with_a_config():
    run = run_script([ROOT / "tools/get_flops.py", ROOT / "configs/cls/msvmamba_t_300e.py"])
    assert run.status == 0, run.output
    title, rows = read(run.output[run.output.index(f"{ROOT}/configs") :])  # warnings come before it
    assert title == f"{ROOT}/configs/cls/msvmamba_t_300e.py, one image of 224 x 224 (H x W)"
    assert [round(total, 2) for total, *_ in rows[:2]] == [33.05, 4.61]
    assert "Published convention" in run.output


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "give a config, or an arch such as --arch tiny, one of them"),
        (["a.py", "--arch", "tiny"], "give a config, or an arch such as --arch tiny, one of them"),
        (["nowhere.py"], "nowhere.py cannot be read as a config: FileNotFoundError"),
        (["--arch", "huge"], "MSVMamba has no arch 'huge'; choose one of nano, micro, tiny"),
        (["--arch", "nano", "--shape", "2", "2"], "cannot be counted on an image of 2 x 2"),
    ],
)
def test_tool_with_bad_arguments(arguments, message, monkeypatch, capsys):
    tool = load_tool("get_flops")
    monkeypatch.setattr("sys.argv", ["get_flops.py", *arguments])
    with pytest.raises(SystemExit) as stopped:
        tool.main()
    assert stopped.value.code == 2
    assert message in capsys.readouterr().err.splitlines()[-1]
