"""Blocks in one call on a GPU give the bits of their layers."""

import contextlib

import pytest
import torch

from mmmsv.kernels import use_backend, whole_block
from mmmsv.kernels.backends.triton import scan as triton_scan

from ..test_models.one_call import BACKBONES, STAGES, layer_by_layer, model_of
from .scan_inputs import device_of

if reason := triton_scan.why_no_triton():
    pytest.skip(reason, allow_module_level=True)

DEVICE = device_of("triton")
IMAGE = torch.randn(1, 3, 12, 16, generator=torch.Generator().manual_seed(0)).to(DEVICE)


@pytest.fixture
def taken(monkeypatch):
    """What blocks in one call have computed, call by call."""
    results, compute = [], whole_block.compute

    def recorded(*arguments):
        results.append(compute(*arguments))
        return results[-1]

    monkeypatch.setattr(whole_block, "compute", recorded)
    return results


def maps_of(model, image, autocast=None):
    """Return the maps with blocks in one call, and those of the layers."""
    ways = []
    for way in (contextlib.nullcontext, layer_by_layer):
        with (
            way(),
            use_backend("triton"),
            torch.no_grad(),
            torch.autocast(DEVICE.type, autocast, enabled=autocast is not None),
        ):
            ways.append(model(image))
    return ways


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "weights", "autocast"),
    [
        *((name, torch.float32, autocast) for name in BACKBONES for autocast in (None, torch.bfloat16)),
        *(("nano", torch.bfloat16, autocast) for autocast in (None, torch.bfloat16)),
    ],
)
def test_are_the_layers(taken, name, weights, autocast):
    model = model_of(name).to(DEVICE, weights)
    ours, theirs = maps_of(model, IMAGE.to(weights), autocast)
    for one, other in zip(ours, theirs, strict=True):
        assert one.dtype == other.dtype
        assert torch.equal(one, other)
    added = autocast is not None and any(type(block).__name__ == "PostNormMS3Block" for block in model.modules())
    assert [y is not None for y in taken] == [not added] * STAGES


def _narrower(block):
    block.scan.out_proj.weight = torch.nn.Parameter(block.scan.out_proj.weight[:, :-1])


def _of_another_dtype(block):
    block.norm1.weight = torch.nn.Parameter(block.norm1.weight.double())


def _another_kernel(block):
    block.scan.full_conv.weight = torch.nn.Parameter(block.scan.full_conv.weight[..., :1].contiguous())


def _a_list(block):
    block.scan.full_scan.routes = [*block.scan.full_scan.routes]


@pytest.mark.parametrize("change", [_narrower, _of_another_dtype, _another_kernel, _a_list])
def test_what_is_not_taken(taken, change):
    model = model_of("nano").to(DEVICE)
    change(next(block for name, block in model.named_modules() if name.endswith("blocks.0")))
    with contextlib.suppress(RuntimeError, ValueError, TypeError), use_backend("triton"), torch.no_grad():
        model(IMAGE)
    assert taken[0] is None


def test_float16_is_left_to_the_layers(taken):
    """Their scans give float32."""
    model = model_of("nano").to(DEVICE)
    with use_backend("triton"), torch.no_grad(), torch.autocast(DEVICE.type, torch.float16):
        model(IMAGE)
    assert taken
    assert not [y for y in taken if y is not None]
