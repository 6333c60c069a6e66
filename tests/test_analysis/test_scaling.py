"""Multiply-adds grow as theory says, exactly; accuracy over size is what the network finds in images of that size."""

import re
from argparse import Namespace
from fractions import Fraction
from itertools import pairwise
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from mmengine.config import Config
from PIL import Image

from mmmsv.analysis import scaling
from mmmsv.analysis.figures.scaling import draw
from mmmsv.analysis.figures.style import COLOURS
from mmmsv.analysis.flops import count
from mmmsv.analysis.networks import load_network
from mmmsv.analysis.photographs import read_photographs
from mmmsv.analysis.scaling import Point, measure, measure_accuracy, scale_pipeline
from mmmsv.analysis.speed.groups import Row, Settings
from mmmsv.analysis.speed.timing import Timing
from mmmsv.analysis.speed.workload import Peak, Variant
from tests.test_tools.load import ROOT, load_tool

from .small import HALF_SS2D, SS2D, small_network

CONFIG = str(ROOT / "configs/cls/msvmamba_n_clothing_mini.py")
SETTINGS = Settings(torch.device("cpu"), "contiguous", "eager", 0.0, memory=True)


@pytest.mark.parametrize("ours", [False, True])
@pytest.mark.parametrize("arch", [SS2D, {}, HALF_SS2D], ids=["SS2D", "MS2D", "HalfSS2D"])
def test_backbones_cost_the_same_for_each_pixel(arch, ours):
    backbone = small_network(**arch, se=False).backbone
    one, four = (count(backbone, size, ours).total for size in ((64, 128), (128, 256)))
    assert four == 4 * one


@pytest.mark.parametrize("ours", [False, True])
def test_a_head_and_squeeze_and_excitation_cost_the_same_for_each_image(ours):
    """What is left grows with the pixels, exactly."""
    model = small_network().model
    (a, b), (c, d) = ([count(model, (side, 64), ours).total for side in sides] for sides in ((64, 128), (192, 256)))
    assert b - a == c - b == d - c > 0
    # C D/8 + D/8 C in each block, and the classifier.
    assert a - (b - a) == sum(2 * 2 * C * (2 * C // 8) for C in (8, 16)) + 16 * 3


def test_a_vision_transformer_costs_the_square():
    """Of its tokens: 2 products of 384 channels in each of 12 blocks."""
    points = measure(["deit_small"], (32, 64, 96))
    tokens = [(point.size // 16) ** 2 + 1 for point in points]
    slopes = [
        Fraction(b.macs - a.macs, n - m) for (a, b), (m, n) in zip(pairwise(points), pairwise(tokens), strict=True)
    ]
    assert (slopes[1] - slopes[0]) / (tokens[2] - tokens[0]) == 2 * 384 * 12


def test_what_is_measured_of_each_model_and_size(monkeypatch):
    """A failure is kept with the size it happened at; a model that is named twice is there once."""

    def measure_group(names, step, settings, show):
        timing, peak = Timing(((1.0, 3.0, 2.0),)), Peak(7, 3)
        return [
            Row(name, step, reason="out of memory")
            if step.height > 32 and "squeeze" in name
            else Row(name, step, Variant("contiguous", "eager"), timing=timing, peak=peak)
            for name in names
        ]

    monkeypatch.setattr(scaling, "measure_group", measure_group)
    monkeypatch.setattr(scaling, "_count", lambda name, sizes, ours: [size**2 for size in sizes])
    assert measure(["nano", "squeezenet1_1", "MSVMamba:nano"], (32, 64), settings=SETTINGS) == [
        Point("MSVMamba nano", 32, 1024, 2.0, 7),
        Point("MSVMamba nano", 64, 4096, 2.0, 7),
        Point("squeezenet1_1", 32, 1024, 2.0, 7),
        Point("squeezenet1_1", 64, 4096, failure="out of memory"),
    ]


LOAD, PACK = {"type": "LoadImageFromFile"}, {"type": "mmpretrain.PackInputs"}
EDGE = {"type": "ResizeEdge", "scale": 256, "edge": "short", "backend": "pillow"}
CROP, RESIZE = {"type": "CenterCrop", "crop_size": 224}, {"type": "Resize", "scale": (224, 224), "backend": "pillow"}


def test_pipelines_are_scaled():
    assert scale_pipeline([LOAD, EDGE, CROP, PACK], 448) == [
        *(LOAD, {**EDGE, "scale": 512}, {**CROP, "crop_size": 448}, PACK)
    ]
    assert scale_pipeline([LOAD, EDGE, CROP, PACK], 64)[1]["scale"] == 73
    assert scale_pipeline([LOAD, RESIZE, PACK], 64) == [LOAD, {**RESIZE, "scale": 64}, PACK]
    assert (EDGE["scale"], CROP["crop_size"]) == (256, 224)


@pytest.mark.parametrize(
    "pipeline",
    [
        [LOAD, EDGE, PACK],
        [LOAD, {**RESIZE, "keep_ratio": True}, PACK],
        [LOAD, {"type": "Resize", "scale_factor": 0.5}, PACK],
        [LOAD, {**RESIZE, "scale": (224, 192)}, PACK],
        [LOAD, EDGE, {**CROP, "efficientnet_style": True}, PACK],
        [LOAD, EDGE, CROP, {"type": "RandomFlip"}, PACK],
    ],
)
def test_pipelines_that_are_not_known(pipeline):
    names = ", ".join(transform["type"].removeprefix("mmpretrain.") for transform in pipeline)
    message = (
        f"the test pipeline {names} cannot be brought to another size: expected LoadImageFromFile, then ResizeEdge"
    )
    with pytest.raises(ValueError, match=message):
        scale_pipeline(pipeline, 448)


@pytest.fixture
def classifier(tmp_path):
    """A config of a small classifier on a few random photographs of two classes, and its weights."""
    cfg = Config.fromfile(CONFIG)
    cfg.model.backbone.arch = {"base": "nano", "embed_dims": (8, 16), "depths": (1, 1)}
    cfg.model.backbone.out_indices = (1,)
    cfg.merge_from_dict({"model.head.in_channels": 16, "model.head.num_classes": 2, "test_evaluator.topk": (1,)})
    cfg.merge_from_dict({"test_dataloader.dataset.data_root": str(tmp_path / "data"), "model.head.topk": (1,)})
    cfg.dump(tmp_path / "classifier.py")
    generator = np.random.default_rng(0)
    for i in range(12):
        pixels = generator.integers(0, 256, (40, 50, 3), dtype=np.uint8)
        path = tmp_path / f"data/val/{'ab'[i % 2]}/{i}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(path)
    network = load_network(str(tmp_path / "classifier.py"))
    torch.manual_seed(2)
    network.model.head.fc.weight.data.normal_()
    torch.save(network.model.state_dict(), tmp_path / "weights.pth")
    return network, tmp_path


def found_by_hand(network, folder, size) -> float:
    """The share of the photographs of two folders, in per cent, whose class the network finds."""
    right = []
    for label, name in enumerate("ab"):
        image = network.prepare(read_photographs(folder / name, size, "square"))
        with torch.no_grad():
            right += (network.model(image).argmax(1) == label).tolist()
    return 100 * sum(right) / len(right)


def test_accuracy_is_that_of_the_network(classifier, capsys):
    network, folder = classifier
    config, checkpoint = str(folder / "classifier.py"), str(folder / "weights.pth")
    before = {path for path in folder.rglob("*") if path.is_file()}
    points = measure_accuracy([(config, checkpoint)], (32, 64), folder / "out")
    by_hand = [found_by_hand(network, folder / "data/val", size) for size in (32, 64)]
    assert [point.accuracy for point in points] == pytest.approx(by_hand)
    assert len({0, 100, *by_hand}) == 4  # else this would show little
    assert [(point.model, point.size, point.macs) for point in points] == [
        ("classifier, weights.pth", size, None) for size in (32, 64)
    ]
    written = {path for path in folder.rglob("*") if path.is_file()} - before
    assert all(path.is_relative_to(folder / "out") for path in written)
    assert capsys.readouterr().out == ""
    with pytest.raises(ValueError, match=r"the test of .*classifier.py at 64 x 64 failed: .*none.pth"):
        measure_accuracy([(config, str(folder / "none.pth"))], (64,), folder / "out")


def test_what_is_run_is_the_test_of_the_config(monkeypatch, tmp_path):
    ran = []

    def from_cfg(cfg):
        ran.append(cfg)
        return SimpleNamespace(test=lambda: {"precision": 1.0})

    monkeypatch.setattr(scaling.Runner, "from_cfg", from_cfg)
    with pytest.raises(ValueError, match=r"mini.py at 56 x 56 finds precision, expected accuracy/top1, of the evaluat"):
        measure_accuracy([(CONFIG, "last.pth")], (56, 64), tmp_path)
    (cfg,), config = ran, Config.fromfile(CONFIG)
    assert (cfg.load_from, cfg.work_dir) == ("last.pth", f"{tmp_path}/msvmamba_n_clothing_mini, last.pth, 56 x 56")
    pipeline = cfg.test_dataloader.dataset.pop("pipeline")
    assert pipeline == scale_pipeline(config.test_dataloader.dataset.pop("pipeline"), 56)
    for name in ("model", "test_dataloader", "test_evaluator", "test_cfg", "custom_hooks", "randomness"):
        assert cfg[name] == config[name]
    assert not {"train_dataloader", "train_cfg", "optim_wrapper", "val_dataloader", "val_cfg"} & {*cfg}


def test_configs_without_a_test_that_is_known(tmp_path):
    detector = str(ROOT / "configs/mask_rcnn/msvmamba_n_coco_mini.py")
    with pytest.raises(ValueError, match=r"coco_mini.py has no test pipeline of mmpretrain; give the config of a clas"):
        measure_accuracy([(detector, "none.pth")], (64,), tmp_path)
    with pytest.raises(ValueError, match=r"none.py cannot be read as a config \(.*none.py"):
        measure_accuracy([("none.py", "none.pth")], (64,), tmp_path)
    with pytest.raises(ValueError, match=r"two of the tests have the same name: x, last.pth; x, last.pth; give other"):
        measure_accuracy([("a/x.py", "a/last.pth"), ("b/x.py", "b/last.pth")], (64,), tmp_path)


@pytest.mark.parametrize("sizes", [(), (16, 64), (64, 64)])
def test_bad_sizes(sizes, tmp_path):
    message = re.escape(f"the sizes are {', '.join(map(str, sizes))}, expected numbers of at least 32, each once")
    with pytest.raises(ValueError, match=message):
        measure(["nano"], sizes)
    with pytest.raises(ValueError, match=message):
        measure_accuracy([(CONFIG, "none.pth")], sizes, tmp_path)


def test_latency_is_that_of_models_by_name():
    with pytest.raises(
        ValueError, match=r"latency and memory of .*clothing_mini.py are not measured, only those of mo"
    ):
        measure([CONFIG], (64,), settings=SETTINGS)


def test_panels_agree_on_colours():
    points = [
        Point("one", 64, 10**9, 0.5, 2**30),
        Point("one", 128, 4 * 10**9, 2.0, 2**31),
        Point("two", 64, 10**9, failure="out of memory"),
        Point("three", 64, accuracy=50.0),
        Point("three", 128, accuracy=75.0),
    ]
    figure = draw(points, "a machine")
    panels = {axes.get_title(): axes for axes in figure.axes if axes.get_title()}
    assert list(panels) == [
        "multiply-adds, GMACs",
        "multiply-adds per pixel, kMACs",
        "latency of one image, ms",
        "peak memory, MiB",
        "top-1 accuracy, %",
    ]
    for axes in panels.values():
        assert [(line.get_label(), line.get_color()) for line in axes.lines] == [
            *zip(("one", "two", "three"), COLOURS, strict=False)
        ]
        assert axes.get_xscale() == "log"
    lines = {title: [line.get_ydata().tolist() for line in axes.lines] for title, axes in panels.items()}
    assert lines["multiply-adds, GMACs"] == [[1.0, 4.0], [1.0], []]
    assert lines["multiply-adds per pixel, kMACs"][0] == [1e6 / 4096] * 2
    assert lines["latency of one image, ms"] == [[500.0, 2000.0], [], []]
    assert lines["peak memory, MiB"] == [[1024.0, 2048.0], [], []]
    assert lines["top-1 accuracy, %"] == [[], [], [50.0, 75.0]]


def test_the_tool(tmp_path):
    config = tmp_path / "small.py"
    cfg = Config.fromfile(CONFIG)
    cfg.model.backbone.arch = {"base": "nano", "embed_dims": (8, 16, 32, 64), "depths": (1, 1, 1, 1)}
    cfg.model.head.in_channels = 64
    cfg.dump(config)
    args = {"sizes": (64, 96), "ours": True, "no_speed": True, "accuracy": [], "out": tmp_path / "out"}
    (path,) = load_tool("scaling").make(Namespace(model=[str(config), "squeezenet1_1"], **args))
    with np.load(path.with_suffix(".npz")) as arrays:
        assert arrays["model"].tolist() == ["small"] * 2 + ["squeezenet1_1"] * 2
        assert arrays["size"].tolist() == [64, 96] * 2
        assert arrays["macs"][0] == count(load_network(str(config)).model, (64, 64), ours=True).total
        assert np.isnan(arrays["latency_seconds"]).all()
    assert path.with_suffix(".svg").exists()


def test_two_configs_of_one_name_would_be_one_curve():
    with pytest.raises(ValueError, match=r"several of a/net\.py, b/net\.py would be called the same in the figure"):
        measure(["a/net.py", "b/net.py"], [64])


def test_markers_of_what_is_almost_constant_are_within_the_panel():
    figure = draw([Point("one", size, macs=size**2 * 5000 + size) for size in (64, 128)], "all")
    low, high = figure.axes[1].get_ylim()
    assert low == 0
    assert high > 5 * 1.04
