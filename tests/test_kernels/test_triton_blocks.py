"""Blocks in one call on a GPU give the bits of their layers."""

import contextlib
from types import SimpleNamespace

import pytest
import torch

from mmmsv.kernels import use_backend, whole_block
from mmmsv.kernels.backends.triton import graphs
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


def _on_another_device(block):
    block.norm1.weight = torch.nn.Parameter(block.norm1.weight.to("meta"))


@pytest.mark.parametrize("change", [_on_another_device, _narrower, _of_another_dtype, _another_kernel, _a_list])
def test_what_is_not_taken(taken, change):
    model = model_of("nano").to(DEVICE)
    with use_backend("triton"), torch.no_grad():
        model(IMAGE)
    assert all(y is not None for y in taken)
    taken.clear()
    change(next(block for name, block in model.named_modules() if name.endswith("blocks.0")))
    with contextlib.suppress(RuntimeError, ValueError, TypeError), use_backend("triton"), torch.no_grad():
        model(IMAGE)
    assert taken
    assert taken[0] is None


def test_float16_is_left_to_the_layers(taken):
    """Their scans give float32."""
    model = model_of("nano").to(DEVICE)
    with use_backend("triton"), torch.no_grad(), torch.autocast(DEVICE.type, torch.float16):
        model(IMAGE)
    assert taken
    assert not [y for y in taken if y is not None]


# --- graphs ---------------------------------------------------------------------------------------------------------

on_a_gpu = pytest.mark.skipif(DEVICE.type != "cuda", reason="CUDA graphs need a GPU")


@pytest.fixture
def captured(monkeypatch):
    """Sizes of x that graphs were captured for, of none at first."""
    sizes, capture = [], graphs._capture

    def recorded(x, *others):
        sizes.append(tuple(x.shape))
        return capture(x, *others)

    monkeypatch.setenv("MMMSV_CUDA_GRAPHS", "1")
    for kept in (graphs._calls, graphs._graphs, graphs._pools):
        kept.clear()
    monkeypatch.setattr(graphs, "_capture", recorded)
    return sizes


def _steps_up(model):
    for weight in model.parameters():
        weight.data.mul_(1.1)


def _is_replaced(model):
    for weight in model.parameters():
        weight.data = weight.data * 0.9


@on_a_gpu
@pytest.mark.parametrize("name", BACKBONES)
@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_graphs_give_what_layers_give(captured, name, mode):
    """With new images, weights that are changed in place or replaced, other sizes, and in both modes."""
    model = model_of(name).to(DEVICE)
    for call in range(24):
        if call in (8, 20):
            (_steps_up if call == 8 else _is_replaced)(model)
        image = torch.randn(2, 3, 32, 48 if 12 <= call < 17 else 40, device=DEVICE)
        with mode() if call != 10 else torch.no_grad(), torch.autocast("cuda", torch.bfloat16):
            ours = model(image)
            with layer_by_layer():
                theirs = model(image)
        for one, other in zip(ours, theirs, strict=True):
            assert torch.equal(one, other), call
    added = any(type(block).__name__ == "PostNormMS3Block" for block in model.modules())
    expected = 0 if added else 3 * STAGES
    assert len(captured) == expected


@on_a_gpu
def test_maps_outlive_the_next_call(captured):
    model = model_of("nano").to(DEVICE)
    with torch.no_grad():
        for _ in range(5):
            first = model(torch.randn(1, 3, 32, 32, device=DEVICE))
        kept = [y.clone() for y in first]
        model(torch.randn(1, 3, 32, 32, device=DEVICE))
    assert captured
    assert all(torch.equal(one, other) for one, other in zip(first, kept, strict=True))


@on_a_gpu
def test_no_graphs_of_large_maps_or_where_they_are_not_asked_for(captured, monkeypatch):
    model, image = model_of("nano").to(DEVICE), torch.randn(1, 3, 32, 32, device=DEVICE)
    with torch.no_grad():
        monkeypatch.delenv("MMMSV_CUDA_GRAPHS")
        for _ in range(6):
            model(image)
        monkeypatch.setenv("MMMSV_CUDA_GRAPHS", "1")
        monkeypatch.setattr(graphs, "_LARGEST_PART", 0)
        for _ in range(6):
            model(image)
    assert not captured


def test_the_environment_variable(monkeypatch):
    monkeypatch.setenv("MMMSV_CUDA_GRAPHS", "yes")
    with pytest.raises(ValueError, match="MMMSV_CUDA_GRAPHS is 'yes', expected 0 or 1"):
        graphs.are_asked_for(IMAGE)
    monkeypatch.setenv("MMMSV_CUDA_GRAPHS", "1")
    assert graphs.are_asked_for(IMAGE) == IMAGE.is_cuda


class _FakeGraph:
    def replay(self):
        pass


def test_the_fourth_call_of_a_kind_is_captured(captured, monkeypatch):
    """Without a GPU: which calls compute, which capture, and what is forgotten."""
    stream = SimpleNamespace(cuda_stream=7)
    stubs = {
        "device": lambda device: contextlib.nullcontext(),
        "current_stream": lambda: stream,
        "graph_pool_handle": object,
        "CUDAGraph": _FakeGraph,
        "graph": lambda graph, **options: contextlib.nullcontext(),
    }
    for name, stub in stubs.items():
        monkeypatch.setattr(torch.cuda, name, stub)
    computed = []

    def compute(x, weights):
        computed.append(weights)
        return x + weights

    def call(kind, size=2):
        return graphs.replayed(torch.zeros(size), 1, compute, kind)

    for _ in range(6):
        assert call("a").tolist() == [1, 1]
    assert len(computed) == 4  # three times, and once for the graph
    assert captured == [(2,)]
    for _ in range(3):
        call("a", size=3)
    assert len(captured) == 1
    stream.cuda_stream = 8  # another one shares no memory with it
    before = len(computed)
    call("a")
    assert len(computed) == before + 1
    stream.cuda_stream = 7
    monkeypatch.setattr(graphs, "_MOST_KEPT", 2)
    call("b")
    before = len(computed)
    call("a")
    assert len(computed) == before + 1  # what was counted of it is forgotten
