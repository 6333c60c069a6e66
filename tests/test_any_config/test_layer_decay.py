"""Layer-wise learning-rate decay in mmdet, mmseg and mmpretrain."""

import pytest
from mmengine.optim import build_optim_wrapper
from torch import nn

from mmmsv.models import MSVMamba

from .stock import build, small_config, stock

ARCH = {"embed_dims": (8, 16, 32), "depths": (1, 2, 1)}
ADAMW = {"type": "AdamW", "lr": 1.0, "weight_decay": 0.1}


def settings(model, constructor="mmmsv.LayerDecayOptimWrapperConstructor", optimizer=ADAMW, **paramwise_cfg):
    """Learning rate and decay of each parameter that is trained."""
    cfg = {"optimizer": dict(optimizer), "constructor": constructor, "paramwise_cfg": paramwise_cfg}
    groups = build_optim_wrapper(model, cfg).optimizer.param_groups
    found = {parameter: (group["lr"], group["weight_decay"]) for group in groups for parameter in group["params"]}
    named = getattr(model, "module", model).named_parameters()
    return {name: found[parameter] for name, parameter in named if parameter.requires_grad}


def rates(model, **paramwise_cfg):
    return {name: rate for name, (rate, _) in settings(model, layer_decay_rate=0.5, **paramwise_cfg).items()}


def test_layers_of_the_backbone():
    model = MSVMamba(ARCH, out_indices=(0, 2))
    layers = {
        "stem.": 0,
        "stages.0.blocks.0.": 1,
        "stages.1.downsample.": 2,
        "stages.1.blocks.0.": 2,
        "stages.1.blocks.1.": 3,
        "stages.2.downsample.": 4,
        "stages.2.blocks.0.": 4,
        "out_norms.0.": 5,
        "out_norms.2.": 5,
    }
    for name, _ in model.named_parameters():
        (layer,) = (layer for part, layer in layers.items() if name.startswith(part))
        assert model.get_layer_depth(name) == (layer, 6)
        assert model.get_layer_depth(f"backbone.{name}", "backbone.") == (layer, 6)
        assert model.get_layer_depth(f"neck.{name}", "backbone.") == (5, 6)
    assert rates(model)["stages.1.blocks.1.norm1.weight"] == 0.25


def test_stages_that_are_not_run_do_not_count():
    model = MSVMamba(ARCH, out_indices=(1,))
    assert model.get_layer_depth("stages.1.blocks.1.norm1.weight") == (3, 5)
    assert model.get_layer_depth("stages.2.blocks.0.norm1.weight") == (4, 5)


def test_same_as_that_of_mmpretrain(tmp_path):
    model = build(small_config(stock("resnet50"), tmp_path))
    rules = {
        "layer_decay_rate": 0.75,
        "norm_decay_mult": 0.0,
        "flat_decay_mult": 0.25,
        "custom_keys": {"A_log": {"decay_mult": 0.5}},
    }
    ours = settings(model, **rules)
    theirs = settings(model, "mmpretrain.LearningRateDecayOptimWrapperConstructor", **rules)
    assert len({rate for rate, _ in ours.values()}) == 6
    assert len({decay for _, decay in ours.values()}) == 4
    assert ours.keys() == theirs.keys()
    for name, (rate, decay) in ours.items():
        assert (rate, decay) == pytest.approx(theirs[name]), name


@pytest.mark.parametrize("name", ["faster-rcnn", "upernet"])
def test_necks_and_heads_keep_the_whole_rate(name, tmp_path):
    cfg = small_config(stock(name), tmp_path)
    cfg.model.backbone.frozen_stages = 0
    model = build(cfg)
    found = rates(model, custom_keys={"stages.0": {"lr_mult": 3.0}})
    assert found.keys() == {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    for parameter, rate in found.items():
        if not parameter.startswith("backbone.stages."):
            assert rate == 1.0, parameter
    assert found["backbone.stages.0.blocks.0.norm1.weight"] == 3.0 * 0.5**4
    assert found["backbone.stages.3.downsample.reduction.weight"] == 0.5


def test_inside_a_wrapper():
    model = MSVMamba(ARCH)
    assert rates(nn.DataParallel(model)) == rates(model)


@pytest.mark.parametrize(
    ("paramwise_cfg", "message"),
    [
        ({}, r"layer_decay_rate is None, expected a number above 0 and at most 1 in paramwise_cfg"),
        ({"layer_decay_rate": 0}, "layer_decay_rate is 0, expected"),
        ({"layer_decay_rate": 1.1}, "layer_decay_rate is 1.1, expected"),
        ({"layer_decay_rate": "0.75"}, "layer_decay_rate is '0.75', expected"),
    ],
    ids=["missing", "zero", "above 1", "text"],
)
def test_bad_rates(paramwise_cfg, message):
    with pytest.raises(ValueError, match=message):
        settings(MSVMamba(ARCH), **paramwise_cfg)


def test_what_has_no_layers_or_no_rate():
    with pytest.raises(ValueError, match="Linear has no get_layer_depth, which returns the layer of a parameter"):
        rates(nn.Linear(1, 1))
    with pytest.raises(ValueError, match="the optimizer has no learning rate; give lr= in its config"):
        rates(MSVMamba(ARCH), optimizer={"type": "AdamW"})
