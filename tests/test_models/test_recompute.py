"""What is computed again is what was computed, whatever happens in between, and whoever keeps the weights."""

import gc
import warnings
import weakref
from contextlib import contextmanager
from unittest.mock import patch

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.fsdp import FullyShardedDataParallel
from torch.distributed.fsdp.wrap import ModuleWrapPolicy
from torch.nn import functional
from torch.nn.utils import parametrizations, parametrize, prune, spectral_norm, weight_norm

from mmmsv.kernels import use_backend
from mmmsv.models import MSVMamba, recompute
from mmmsv.models.blocks import MS3Block
from tests.processes import SERVER

RECOMPUTING = [{}, {"recompute": True}, {"with_cp": True}]
each_option = pytest.mark.parametrize("options", RECOMPUTING, ids=str)
IMAGE = torch.randn(2, 3, 16, 16, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


hooks = []  # for all modules, to be removed


def small(**options):
    torch.manual_seed(0)
    settings = {"base": "nano", "embed_dims": (16, 24), "depths": (1, 1)}
    return MSVMamba(settings, drop_path_rate=0.0, **options).double().train()


def linear_layers(model):
    return [layer for layer in model.modules() if isinstance(layer, nn.Linear)]


def loss_of(maps):
    """A sum in which each number has a weight of its own: that of squares of normalised maps hardly has a gradient."""
    return sum((each * torch.arange(each.numel(), dtype=each.dtype).cos().view_as(each)).sum() for each in maps)


def gradients(model, between=lambda model: None):
    """Those of the image and of all parameters that there were in the forward pass."""
    wanted = {**dict(model.named_parameters()), "image": IMAGE.clone().requires_grad_()}
    torch.manual_seed(1)
    loss = loss_of(model(wanted["image"]))
    between(model)
    loss.backward()
    while hooks:
        hooks.pop().remove()
    return {name: tensor.grad for name, tensor in wanted.items()}


def assert_same(ours, theirs, tolerance=0.0):
    """To the last bit, since the same kernels compute the same numbers."""
    assert ours.keys() == theirs.keys()
    assert any(gradient is not None for gradient in theirs.values())
    for name, gradient in theirs.items():
        if gradient is None:
            assert ours[name] is None, name
        else:
            assert gradient.any(), name
            near = tolerance * float(gradient.abs().max())
            torch.testing.assert_close(
                ours[name], gradient, rtol=0, atol=near, msg=lambda text, name=name: f"{name}: {text}"
            )


def freeze(model):
    model.requires_grad_(False)


def freeze_a_stage(model):
    model.stages[1].requires_grad_(False)


def evaluate(model):
    model.eval()


def double_what_linear_layers_return(model):
    for layer in linear_layers(model):
        layer.register_forward_hook(lambda layer, x, y: 2 * y)


def double_what_linear_layers_take(model):
    for layer in linear_layers(model):
        layer.register_forward_pre_hook(lambda layer, x: (2 * x[0],))


def prune_weights(model):
    for layer in linear_layers(model):
        prune.l1_unstructured(layer, "weight", 0.5)


def replace_a_layer(model):
    model.stages[0].blocks[0].scan.out_proj = nn.Identity()


def delete_a_layer(model):
    del model.stages[0].blocks[0].scan.out_proj


def parametrize_layers(model):
    for layer in linear_layers(model):
        parametrizations.weight_norm(layer)


def borrow_other_weights(model):
    """As a moving average does that is tested within a step."""
    kept = [parameter.data for parameter in model.parameters()]
    for parameter in model.parameters():
        parameter.data = 2 * parameter.data
    with torch.no_grad():
        model(IMAGE)
    for parameter, data in zip(model.parameters(), kept, strict=True):
        parameter.data = data


def hook_all_modules(model):
    hooks.append(
        nn.modules.module.register_module_forward_hook(
            lambda layer, x, y: 2 * y if isinstance(layer, nn.Linear) else None
        )
    )


def replace_weights(model):
    for layer in linear_layers(model):
        layer.weight = nn.Parameter(2 * layer.weight)


def share_a_layer(model):
    """Which is in the model twice, and in itself."""
    block = model.stages[0].blocks[0]
    block.again = block.ffn
    block.ffn.owner = block


CHANGES = [
    *(hook_all_modules, replace_weights, share_a_layer),
    *(freeze, freeze_a_stage, evaluate, double_what_linear_layers_return, double_what_linear_layers_take),
    *(prune_weights, replace_a_layer, delete_a_layer, parametrize_layers, borrow_other_weights),
]


@each_option
@pytest.mark.parametrize("change", CHANGES)
def test_a_change_before_the_backward_pass(change, options):
    """It changes nothing. What autograd does not give to a frozen parameter, nobody gets."""
    drop = {"ffn_drop_rate": 0.2 if change is evaluate else 0.0}
    assert_same(gradients(small(**options, **drop), change), gradients(small(recompute=False, **drop), change))


def put_larger_numbers_in_place(model):
    """As a moving average that takes the place of the weights before the backward pass."""
    for parameter in model.parameters():
        parameter.data = 1.5 * parameter.data


def test_numbers_that_are_swapped():
    """A block that is computed again has its own; the output norm behind it, which is not, has others by then."""
    ours = gradients(small(with_cp=True), put_larger_numbers_in_place)
    theirs = gradients(small(with_cp=True))
    last = {name: 1.5 * gradient for name, gradient in theirs.items() if name.startswith("stages.1.blocks.")}
    assert_same({name: ours[name] for name in last}, last, tolerance=1e-9)


def by_another_backend():
    return use_backend("torch")


def without_onednn():
    return torch.backends.mkldnn.flags(enabled=False)


@contextmanager
def counted():
    """As profilers count that put functions of their own in the place of torch's."""
    with patch.object(functional, "linear", wraps=functional.linear):
        yield


@each_option
@pytest.mark.parametrize("context", [by_another_backend, without_onednn, counted])
def test_a_context_that_is_left_before_the_backward_pass(context, options):
    both = []
    for model in (small(**options).float(), small(recompute=False).float()):
        with context():
            loss = loss_of(model(IMAGE.float()))
        loss.backward()
        both.append({name: parameter.grad for name, parameter in model.named_parameters()})
    assert_same(*both, tolerance=1e-5)


class Scaled(nn.Parameter):
    """A parameter of a type of its own, with a number that a layer reads, as quantised weights have."""


class ScaledLinear(nn.Linear):
    """A linear layer that reads its weight's number, and keeps what it has returned."""

    def forward(self, x):
        self.last = functional.linear(x, self.weight * self.weight.scale, self.bias)
        return self.last


def use_scaled_layers(model, kind=Scaled):
    for block in (block for stage in model.stages for block in stage.blocks):
        old = block.scan.out_proj
        block.scan.out_proj = new = ScaledLinear(old.in_features, old.out_features, bias=False).double()
        new.weight = kind(old.weight.detach().clone())
        new.weight.scale = 2.0
    return model


@each_option
@pytest.mark.parametrize("kind", [Scaled, nn.Parameter])
def test_parameters_of_another_kind(kind, options):
    ours, theirs = (use_scaled_layers(small(**each), kind) for each in (options, {"recompute": False}))
    assert_same(gradients(ours), gradients(theirs))


@each_option
def test_outputs_that_layers_keep_do_not_keep_graphs(options):
    """Each graph goes with the next forward pass, without a backward pass, too."""
    model = use_scaled_layers(small(**options))
    outputs = []
    for _ in range(3):
        model(IMAGE)
        outputs.append(weakref.ref(model.stages[0].blocks[0].scan.out_proj.last))
    gc.collect()
    assert [output() is not None for output in outputs] == [False, False, True]


@each_option
def test_buffers_that_do_not_change_are_not_copied(options):
    """Quantised weights lie in buffers."""
    model = small(**options)
    model.stages[0].blocks[0].scan.out_norm.register_buffer("packed", torch.zeros(1000))
    with patch.object(recompute._Before, "__init__", autospec=True, side_effect=recompute._Before.__init__) as made:
        maps = model(IMAGE)
    kept = [buffers for call in made.call_args_list for *_, buffers in call.args[0].layers]
    assert kept == [{}] * len(kept)
    assert bool(kept)
    assert maps


def test_a_program_as_a_layer():
    """torch.jit has its own kind of modules, in which recomputation cannot stop halfway."""
    both = []
    for model in (small(), small(recompute=False)):
        scan = model.stages[0].blocks[0].scan
        scan.out_proj = torch.jit.trace(scan.out_proj, torch.zeros(1, 1, 1, scan.inner, dtype=torch.float64))
        both.append(gradients(model, freeze_a_stage))
    assert_same(*both)


@each_option
def test_gradients_in_batches(options):
    model = small(**options)
    image = IMAGE.clone().requires_grad_()
    means = model(image)[1].mean((2, 3)).flatten()
    vectors = torch.eye(len(means), dtype=torch.float64)[:3]
    (together,) = torch.autograd.grad(means, image, vectors, is_grads_batched=True, retain_graph=True)
    for gradient, mean in zip(together, means[:3], strict=True):
        (theirs,) = torch.autograd.grad(mean, image, retain_graph=True)
        torch.testing.assert_close(gradient, theirs, rtol=0, atol=1e-12 * float(theirs.abs().max()))


@pytest.mark.slow
@pytest.mark.skipif(torch.__version__ < "2.2", reason="torch 2.1 breaks the graph at other places, too")
@pytest.mark.parametrize("options", RECOMPUTING[1:], ids=str)
def test_is_one_program(options):
    torch.compiler.reset()
    compiled = torch.compile(small(**options), fullgraph=True, backend="eager")
    for ours, theirs in zip(compiled(IMAGE), small(recompute=False)(IMAGE), strict=True):
        torch.testing.assert_close(ours, theirs)


@each_option
def test_what_is_unfrozen_before_the_backward_pass(options):
    ours, theirs = (small(frozen_stages=1, **each) for each in (options, {"recompute": False}))
    unfreeze = lambda model: model.requires_grad_(True)  # noqa: E731
    assert_same(gradients(ours, unfreeze), gradients(theirs, unfreeze))


@each_option
def test_autocast_ends_before_the_backward_pass(options):
    both = []
    for model in (small(**options).float(), small(recompute=False).float()):
        with torch.autocast("cpu", torch.bfloat16):
            loss = loss_of(model(IMAGE.float()))
        loss.backward()
        both.append({name: parameter.grad for name, parameter in model.named_parameters()})
    assert_same(*both)


@each_option
@pytest.mark.parametrize(
    "wrap", [spectral_norm, parametrizations.spectral_norm, weight_norm], ids=lambda f: f.__module__
)
def test_norms_of_weights(wrap, options):
    """Those that count how often they are called count once."""
    both = []
    for model in (small(**options), small(recompute=False)):
        torch.manual_seed(2)
        with warnings.catch_warnings(action="ignore", category=FutureWarning):
            for layer in linear_layers(model):
                wrap(layer)
        loss = loss_of(model(IMAGE))
        loss.backward(retain_graph=True)
        loss.backward()
        both.append(
            {name: parameter.grad for name, parameter in model.named_parameters()} | dict(model.named_buffers())
        )
    assert_same(*both)


@each_option
@pytest.mark.parametrize("is_left", [True, False], ids=["left", "kept"])
def test_cached_parametrizations(options, is_left):
    both = []
    for model in (small(**options), small(recompute=False)):
        parametrize_layers(model)
        with parametrize.cached():
            loss = loss_of(model(IMAGE))
            if not is_left:
                loss.backward()
        if is_left:
            loss.backward()
        both.append({name: parameter.grad for name, parameter in model.named_parameters()})
    assert_same(*both)


@each_option
def test_replicas(options):
    """As DataParallel makes them: copies of the modules whose weights are plain tensors."""
    both = []
    for model in (small(**options), small(recompute=False)):
        modules = list(model.modules())
        replicas = dict(zip(modules, (module._replicate_for_data_parallel() for module in modules), strict=True))
        for module, replica in replicas.items():
            replica._modules = {name: replicas[child] for name, child in module._modules.items() if child is not None}
            for name, parameter in module._parameters.items():
                setattr(replica, name, None if parameter is None else parameter * 1.0)
        loss_of(replicas[model](IMAGE)).backward()
        both.append({name: parameter.grad for name, parameter in model.named_parameters()})
    assert_same(*both)


@pytest.fixture
def one_process():
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield
    dist.destroy_process_group()


def shard(model, kinds):
    """FSDP of today, around each module of some kinds."""
    if torch.__version__ < "2.6":
        pytest.skip("it came with torch 2.6")
    mesh = dist.init_device_mesh("cpu", (dist.get_world_size(),))
    for module in [*(module for module in model.modules() if isinstance(module, kinds)), model]:
        dist.fsdp.fully_shard(module, mesh=mesh)
    found = gradients(model)
    image = found.pop("image")
    return {name: gradient.full_tensor() for name, gradient in found.items()} | {"image": image}


def shard_in_the_first_way(model, kinds):
    """FSDP with the original parameters, around each module of some kinds."""
    policy = ModuleWrapPolicy({type(module) for module in model.modules() if isinstance(module, kinds)})
    with warnings.catch_warnings(action="ignore"):
        sharded = FullyShardedDataParallel(
            model, auto_wrap_policy=policy, use_orig_params=True, device_id=torch.device("cpu")
        )
        image = gradients(sharded)["image"]
        with FullyShardedDataParallel.summon_full_params(sharded, with_grads=True):
            parameters = {name.replace("_fsdp_wrapped_module.", ""): p for name, p in sharded.named_parameters()}
            return {name: parameter.grad.clone() for name, parameter in parameters.items()} | {"image": image}


@each_option
@pytest.mark.parametrize("kinds", [MS3Block, nn.Linear])
@pytest.mark.parametrize("way", [shard, shard_in_the_first_way])
def test_sharded_weights(one_process, way, kinds, options):
    """FSDP gathers the weights of what it wraps before the call, and before its backward pass, and then frees them."""
    # Not to the last bit: a weight that lies elsewhere in memory is multiplied in another order.
    assert_same(way(small(**options), kinds), gradients(small(recompute=False)), tolerance=1e-11)


def _check_a_shard(rank, way, store):
    """In one of two processes, each with half of the weights."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=2)
    assert_same(way(small(with_cp=True), MS3Block), gradients(small(recompute=False)), tolerance=1e-11)
    dist.destroy_process_group()


@pytest.mark.parametrize("way", [shard, shard_in_the_first_way])
def test_weights_in_two_processes(way, tmp_path):
    processes = [SERVER.Process(target=_check_a_shard, args=(rank, way, tmp_path / "store")) for rank in range(2)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    assert [process.exitcode for process in processes] == [0, 0]


@each_option
def test_layers_that_gather_their_weights(options):
    """As those that DeepSpeed shards: the weights have no elements but while the layer computes."""
    model = small(**options)
    layer = model.stages[0].blocks[0].scan.out_proj
    full = layer.weight.data

    def gather(*_):
        layer.weight.data = full

    def free(*_):
        layer.weight.data = full.new_empty(0)

    layer.weight.ds_id = 0
    free()
    layer.register_forward_pre_hook(gather)
    layer.register_forward_hook(free)
    layer.register_full_backward_pre_hook(gather)
    assert_same(gradients(model), gradients(small(recompute=False)))


def test_hooks_run_once_unless_recomputation_is_asked_for():
    for options, runs in ({}, 1), ({"recompute": True}, 2), ({"with_cp": True}, 2):
        model, calls = small(**options), []
        model.stages[0].blocks[0].scan.out_norm.register_forward_hook(lambda *_, calls=calls: calls.append(1))
        gradients(model)
        assert len(calls) == runs
