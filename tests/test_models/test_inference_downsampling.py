"""Layers that lower the resolution have, in one call, the results of their parts; changed parts are called."""

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrize

from mmmsv.models import layers

from ..test_kernels.fused_inputs import needs_library
from .adapters import LowRank
from .one_call import BACKBONES, assert_same_outcome, model_of, set_weight
from .test_inference import Doubled
from .test_inference_errors import WRONG

pytestmark = needs_library

# The downsampling of the second stage, and in the newer models half of the stem.
CALLS = {"nano": 1, "vmamba": 1, "v3_tiny": 2, "v3_base_gated": 2, "vmamba_v2": 2}


@pytest.mark.parametrize("name", BACKBONES)
@pytest.mark.parametrize("size", [(2, 3, 32, 40), (1, 3, 37, 51), (3, 3, 8, 90)], ids=str)
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last], ids=str)
def test_is_its_parts(downsampled, name, size, layout):
    with torch.no_grad():
        assert_same_outcome(model_of(name).to(memory_format=layout), torch.randn(size))
    assert len(downsampled) == CALLS[name]


def hook(layer):
    layer.register_forward_hook(lambda module, inputs, y: 2 * y)


def own_forward(layer):
    forward = layer.forward
    layer.forward = lambda x: 2 * forward(x)


def own_convolution(layer):
    convolve = layer._conv_forward
    layer._conv_forward = lambda x, weight, bias: 2 * convolve(x, weight, bias)


def compiled(layer):
    layer._compiled_call_impl = lambda x: 2 * layer._call_impl(x)


def parametrised(layer):
    parametrize.register_parametrization(layer, "weight", Doubled())


def plain_weight(layer):
    weight = layer.weight.detach()
    del layer.weight
    layer.weight = 2 * weight


def subclassed(layer):
    class Negative(type(layer)):
        def forward(self, input):
            return -super().forward(input)

    layer.__class__ = Negative


CHANGES = [hook, own_forward, compiled, parametrised, plain_weight, subclassed]
PARTS = {"nano": ("norm", "reduction"), "v3_tiny": ("conv", "norm")}


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize(("name", "part"), [(name, part) for name in PARTS for part in PARTS[name]])
def test_changed_parts(downsampled, name, part, change):
    model, x = model_of(name), torch.randn(2, 6, 7, 16)
    downsample = model.stages[1].downsample
    change(downsample.get_submodule(part))
    with torch.no_grad():
        assert_same_outcome(downsample, x)
    assert not downsampled


def test_changed_convolutions(downsampled):
    downsample = model_of("v3_tiny").stages[1].downsample
    own_convolution(downsample.conv)
    with torch.no_grad():
        assert_same_outcome(downsample, torch.randn(2, 6, 7, 16))
    assert not downsampled


@pytest.mark.parametrize("method", ["forward", "_conv_forward"])
def test_replaced_methods_of_torchs_convolution(downsampled, monkeypatch, method):
    convolve = getattr(nn.Conv2d, method)
    monkeypatch.setattr(nn.Conv2d, method, lambda *arguments: 2 * convolve(*arguments))
    with torch.no_grad():
        assert_same_outcome(model_of("v3_tiny").stages[1].downsample, torch.randn(2, 6, 7, 16))
    assert not downsampled


def test_adapters(downsampled):
    downsample = model_of("nano").stages[1].downsample
    downsample.reduction = LowRank(downsample.reduction)
    with torch.no_grad():
        assert_same_outcome(downsample, torch.randn(2, 6, 7, 16))
    assert not downsampled


@pytest.mark.parametrize(
    "options",
    [
        *({"stride": 1}, {"padding": 0}, {"padding": 1, "padding_mode": "circular"}, {"dilation": 2}, {"groups": 2}),
        *({"kernel_size": 5}, {"padding": "valid", "stride": 1}, {"bias": False}),
    ],
    ids=str,
)
def test_another_convolution(downsampled, options):
    downsample = model_of("v3_tiny").stages[1].downsample
    downsample.conv = layers.ChannelsLastConv2d(16, 24, **{"kernel_size": 3, "stride": 2, "padding": 1, **options})
    with torch.no_grad():
        assert_same_outcome(downsample, torch.randn(2, 9, 8, 16))
    assert len(downsampled) == ("bias" in options)


@pytest.mark.parametrize("part", ["conv", "norm"])
def test_a_part_that_is_missing(downsampled, part):
    """The error is that of the layer."""
    downsample = model_of("v3_tiny").stages[1].downsample
    delattr(downsample, part)
    with torch.no_grad():
        assert_same_outcome(downsample, torch.randn(2, 9, 8, 16))


@pytest.mark.parametrize("kind", WRONG)
@pytest.mark.parametrize("name", ["nano", "v3_tiny"])
def test_wrong_weights(downsampled, name, kind):
    """Whichever weight is wrong, the error is that of its layer."""
    downsample, x = model_of(name).stages[1].downsample, torch.randn(2, 3, 4, 16)
    for path, weight in [*downsample.named_parameters()]:
        set_weight(downsample, path, WRONG[kind](weight.detach()))
        with torch.no_grad():
            assert_same_outcome(downsample, x)
        set_weight(downsample, path, weight.detach())


@pytest.mark.parametrize("channels", [15, 17])
@pytest.mark.parametrize("name", ["nano", "v3_tiny"])
def test_wrong_maps(downsampled, name, channels):
    downsample = model_of(name).stages[1].downsample
    with torch.no_grad():
        for x in (torch.randn(2, 3, 4, channels), torch.randn(3, 4, 16), torch.randn(2, 3, 4, 16, dtype=torch.float64)):
            assert_same_outcome(downsample, x)
    assert not downsampled


def test_a_hook_on_every_module(downsampled):
    handle = nn.modules.module.register_module_forward_hook(lambda module, inputs, y: None)
    try:
        with torch.no_grad():
            assert_same_outcome(model_of("v3_tiny"), torch.randn(1, 3, 32, 40))
    finally:
        handle.remove()
    assert not downsampled
