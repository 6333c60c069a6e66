"""Blocks in one call have the results of their layers, which are called one by one where somebody has changed one."""

import copy

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations, parametrize, prune

from mmmsv.models import blocks, ffn, fusion, layers, ms2d, s6

from ..test_kernels.fused_inputs import needs_library
from .adapters import LowRank
from .one_call import BACKBONES, CONTAINERS, EVERY, STAGES, assert_same, assert_same_outcome, layer_by_layer, model_of

IMAGE = torch.randn(2, 3, 32, 40, generator=torch.Generator().manual_seed(0))

pytestmark = needs_library


# --- results --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", EVERY)
@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
@pytest.mark.parametrize("train", [False, True])
def test_is_the_layers(taken, name, mode, train):
    model = model_of(name).train(train)
    with mode():
        assert_same_outcome(model, IMAGE)
    assert len(taken) == (0 if name == "half_ss2d" else STAGES)


@pytest.mark.parametrize("name", BACKBONES)
@pytest.mark.parametrize("size", [(1, 3, 16, 16), (3, 3, 37, 51), (1, 3, 8, 90)])
def test_sizes(taken, name, size):
    with torch.no_grad():
        assert_same_outcome(model_of(name), torch.randn(size))
    assert len(taken) == STAGES


def test_a_frozen_model_needs_no_mode(taken):
    assert_same_outcome(model_of("nano").requires_grad_(False), IMAGE)
    assert len(taken) == STAGES


@pytest.mark.parametrize("name", BACKBONES)
@pytest.mark.parametrize("weights", [torch.float32, torch.bfloat16])
def test_bfloat16(taken, name, weights):
    """Autocast, and a model in it: as far from exact numbers as the layers, at most twice that."""
    model = model_of(name)
    exact = copy.deepcopy(model).double()
    model, image = model.to(weights), IMAGE.to(weights)

    def errors():
        with torch.no_grad(), torch.autocast("cpu", torch.bfloat16, enabled=weights == torch.float32):
            maps = model(image)
        with torch.no_grad():
            theirs = exact(IMAGE.double())
        return [(y.double() - z).square().mean() / z.square().mean() for y, z in zip(maps, theirs, strict=True)]

    ours = errors()
    with layer_by_layer():
        theirs = errors()
    assert len(taken) == STAGES
    for one, other in zip(ours, theirs, strict=True):
        assert one < 4 * other  # of squares


@pytest.mark.parametrize("options", [{"drop_path_rate": 0.3}, {"ffn_drop_rate": 0.3}], ids=str)
def test_active_dropout(taken, options):
    """Random parts are drawn as before while training, and leave inference alone."""
    model = model_of("nano", **options)
    with torch.no_grad():
        assert_same_outcome(model, IMAGE)
        assert len(taken) == STAGES
        assert_same_outcome(model.train(), IMAGE)
    assert len(taken) == STAGES


# --- changed layers -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", EVERY)
@pytest.mark.parametrize("kind", ["register_forward_hook", "register_forward_pre_hook"])
def test_hooks(taken, name, kind):
    """On each module alone: it fires, and the blocks of that stage are called one by one."""
    model, calls = model_of(name), []
    with torch.no_grad(), layer_by_layer():
        expected = model(IMAGE)
    for path, module in model.named_modules():
        if isinstance(module, CONTAINERS):
            continue
        handle = getattr(module, kind)(lambda *_, path=path: calls.append(path))
        with torch.no_grad():
            maps = model(IMAGE)
        handle.remove()
        assert path in calls
        assert_same(maps, expected)
        stages = 0 if name == "half_ss2d" else STAGES
        assert len(taken) == (stages - 1 if ".blocks." in path and stages else stages), path
        calls.clear(), taken.clear()
    with torch.no_grad():
        model(IMAGE)
    assert len(taken) == stages


@pytest.mark.parametrize(
    "register_hook",
    [nn.modules.module.register_module_forward_hook, nn.modules.module.register_module_forward_pre_hook],
)
def test_hooks_on_all_modules(taken, register_hook):
    model, calls = model_of("nano"), set()
    handle = register_hook(lambda module, *_: calls.add(module))
    try:
        with torch.no_grad():
            assert_same_outcome(model, IMAGE)
    finally:
        handle.remove()
    assert calls == {module for module in model.modules() if not isinstance(module, CONTAINERS)}
    assert not taken


def own_forward(block):
    forward = block.scan.out_proj.forward
    block.scan.out_proj.forward = lambda x: 2 * forward(x)


def own_projection(block):
    project = block.scan.project_in
    block.scan.project_in = lambda x: tuple(2 * y for y in project(x))


def own_forward_of_the_block(block):
    forward = block.forward
    block.forward = lambda x: 2 * forward(x)


def own_forward_of_dropped_paths(block):
    block.drop_path.forward = lambda x, branch: x - branch


def hook_that_changes(block):
    block.scan.full_scan.register_forward_hook(lambda layer, inputs, y: 2 * y)


def hook_with_names(block):
    block.scan.full_scan.register_forward_pre_hook(lambda *_: None, with_kwargs=True)


def adapters(block):
    scan = block.scan
    scan.in_proj, scan.out_proj = LowRank(scan.in_proj), LowRank(scan.out_proj)
    scan.full_scan.x_proj = LowRank(scan.full_scan.x_proj)


class Doubled(nn.Module):
    def forward(self, weight):
        return 2 * weight


def parametrised(block):
    parametrize.register_parametrization(block.scan.out_proj, "weight", Doubled())


def parametrised_scan(block):
    parametrize.register_parametrization(block.scan.full_scan, "A_log", Doubled())


def weight_norm(block):
    parametrizations.weight_norm(block.scan.out_proj)
    block.scan.out_proj.parametrizations.weight.original0.data.mul_(2)


def weight_norm_by_a_hook(block):
    nn.utils.weight_norm(block.scan.out_proj)
    block.scan.out_proj.weight_g.data.mul_(2)


def pruned(block):
    prune.random_unstructured(block.scan.out_proj, "weight", 0.5)


def quantised(block):
    linear = block.scan.out_proj
    plain = nn.Linear(linear.in_features, linear.out_features, bias=False)
    plain.weight = linear.weight
    block.scan.out_proj = torch.ao.quantization.quantize_dynamic(nn.Sequential(plain), {nn.Linear})[0]


def compiled(block):
    layer = block.scan.out_proj
    layer._compiled_call_impl = lambda x: 2 * layer._call_impl(x)


def torchs_own_norm(block):
    norm = nn.LayerNorm(block.norm1.normalized_shape, eps=0.5)
    norm.load_state_dict(block.norm1.state_dict())
    block.norm1 = norm


def layer_of_a_subclass(block):
    class Negative(layers.Linear):
        def forward(self, input):
            return -super().forward(input)

    block.scan.out_proj.__class__ = Negative


def block_of_a_subclass(block):
    class Scaled(type(block)):
        def forward(self, x):
            return 2 * super().forward(x)

    block.__class__ = Scaled


class Twice(nn.Module):
    def __init__(self, module):
        super().__init__()
        self.module = module

    def forward(self, *inputs):
        return 2 * self.module(*inputs)


def another_scan(block):
    block.scan = Twice(block.scan)


CHANGES = [
    *(
        own_forward,
        own_projection,
        own_forward_of_the_block,
        own_forward_of_dropped_paths,
        hook_that_changes,
        hook_with_names,
    ),
    *(adapters, parametrised, parametrised_scan, weight_norm, weight_norm_by_a_hook, pruned, quantised, compiled),
    *(torchs_own_norm, layer_of_a_subclass, block_of_a_subclass, another_scan),
]


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("name", ["nano", "v3_tiny", "vmamba", "vmamba_v2"])
@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_changed_layers(taken, name, change):
    """The blocks of that stage are called one by one, those of the other in one call."""
    model = model_of(name)
    change(model.stages[0].blocks[0])
    with torch.no_grad():
        assert_same_outcome(model, IMAGE)
    assert len(taken) == STAGES - 1


@pytest.mark.parametrize("place", range(3))
def test_a_change_of_any_block(taken, place):
    model = model_of("nano")
    own_forward([block for stage in model.stages for block in stage.blocks][place])
    with torch.no_grad():
        assert_same_outcome(model, IMAGE)
    assert len(taken) == STAGES - 1


CLASSES = {
    "nano": (
        *(blocks.MS3Block, ms2d.MS2D, s6.S6, ms2d.SqueezeExcite, ffn.ConvFFN, fusion.NormFirstFusion),
        *(layers.DepthwiseConv2d, layers.DropPath, layers.HalvedLinear, layers.LayerNorm, layers.Linear, nn.Dropout),
    ),
    "v3_tiny": (blocks.PostNormMS3Block, fusion.NormLastFusion),
    "vmamba": (blocks.VSSBlock, ms2d.SS2D),
    "vmamba_v2": (ffn.MLP,),
}


@pytest.mark.parametrize(("name", "layer"), [(name, layer) for name in CLASSES for layer in CLASSES[name]])
def test_changed_classes(taken, monkeypatch, name, layer):
    model, forward, calls = model_of(name), layer.forward, []
    monkeypatch.setattr(
        layer, "forward", lambda self, *args, **kwargs: calls.append(1) or forward(self, *args, **kwargs)
    )
    with torch.no_grad():
        assert_same_outcome(model, IMAGE)
    assert calls
    assert not taken


def test_quantised_models(taken):
    """``quantize_dynamic`` maps exact types, and leaves the layers of the blocks alone."""
    model = torch.ao.quantization.quantize_dynamic(model_of("nano"))
    with torch.no_grad():
        assert_same_outcome(model, IMAGE)
    assert len(taken) == STAGES
