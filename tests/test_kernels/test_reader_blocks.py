"""Maps with two readers in blocks of layers: hooks, adapters, checkpoints, programs, and what lives how long."""

import copy
import gc
import weakref

import pytest
import torch
from torch import Tensor, nn
from torch.fx.experimental.proxy_tensor import make_fx
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.checkpoint import checkpoint

from mmmsv.kernels import branch_off, depthwise_conv, read_twice, readers

from .fused_inputs import conv_inputs, needs_library, normal
from .reader_cases import CASES, assert_same, plain_branch_off, plain_read_twice
from .scan_inputs import assert_near


class Conv(nn.Module):
    """A layer whose result has two readers, and whose input has another one."""

    def __init__(self):
        super().__init__()
        _, weight, bias = conv_inputs((1, 1, 1, 8), 3)
        self.weight, self.bias = nn.Parameter(weight), nn.Parameter(bias)

    def forward(self, x):
        return depthwise_conv(x, self.weight, self.bias, 1, "silu")


class Block(nn.Module):
    """Reads maps twice."""

    def __init__(self):
        super().__init__()
        self.layer, self.branch_off, self.read_twice = Conv(), branch_off, read_twice

    def forward(self, x):
        x, y = self.branch_off(self.layer, x)
        y, y2 = self.read_twice(y)
        return x + y.sin() * y2

    def plain(self):
        block = copy.deepcopy(self)
        block.branch_off, block.read_twice = plain_branch_off, plain_read_twice
        return block


def with_gradients(block, x, run=lambda block, x: block(x)):
    leaf = x.clone().requires_grad_()
    y = run(block, leaf)
    return y, *torch.autograd.grad(y.square().sum(), [leaf, *block.parameters()])


def replaced_input(block):
    block.layer.register_forward_pre_hook(lambda layer, inputs: (inputs[0] * 2,))


def replaced_result(block):
    block.layer.register_forward_hook(lambda layer, inputs, y: y * 2)


def changed_result(block):
    block.layer.register_forward_hook(lambda layer, inputs, y: y.mul_(2))


def changed_result_unseen(block):
    def change(layer, inputs, y):
        with torch.no_grad():
            y.mul_(2)

    block.layer.register_forward_hook(change)


def quantised_result(block):
    def change(layer, inputs, y):
        y.data = y.data.mul(4).round().div(4)

    block.layer.register_forward_hook(change)


def hooked_result(block):
    block.layer.register_forward_hook(lambda layer, inputs, y: y.register_hook(lambda dy: dy * 10) and None)


def seen_gradients(block):
    block.layer.register_full_backward_hook(lambda layer, dxs, dys: (dxs[0] * 3,))


class Adapter(nn.Module):
    def __init__(self, layer):
        super().__init__()
        self.base, self.other = layer, Conv()

    def forward(self, x):
        return self.base(x) + 2 * self.other(x).square()


def adapter(block):
    block.layer = Adapter(block.layer)


def called_twice(block):
    layer = block.layer
    block.layer = nn.Sequential(layer, layer)


def frozen(block):
    block.layer.bias.requires_grad_(False)
    block.layer.bias = nn.Parameter(block.layer.bias.detach().clone())


CHANGES = (
    replaced_input,
    replaced_result,
    changed_result,
    changed_result_unseen,
    quantised_result,
    hooked_result,
    seen_gradients,
    adapter,
    called_twice,
    frozen,
)


@needs_library
@pytest.mark.parametrize("change", CHANGES)
def test_hooks_and_adapters(change):
    block, x = Block(), normal(2, 4, 5, 8)
    plain = block.plain()
    for each in (block, plain):
        change(each)
    assert_same(with_gradients(block, x), with_gradients(plain, x))


@needs_library
@pytest.mark.parametrize("reentrant", [False, True])
@pytest.mark.parametrize("part", ["layer", "block"])
def test_checkpoint(part, reentrant):
    """The second run makes what the first one made."""
    block, x = Block(), normal(2, 4, 5, 8)
    plain = block.plain()

    def run(block, x):
        if part == "block":
            return checkpoint(block, x, use_reentrant=reentrant)
        layer, block.layer = block.layer, None
        block.layer = Checkpointed(layer, reentrant)
        return block(x)

    x = x.requires_grad_()
    results = [
        (run(block, x), list(block.parameters())),
        (plain(x), list(plain.parameters())),
    ]
    both = []
    for y, weights in results:
        y.square().sum().backward()
        both.append((y, x.grad, *(weight.grad for weight in weights)))
        x.grad = None
    assert_same(*both)


class Checkpointed(nn.Module):
    def __init__(self, layer, reentrant):
        super().__init__()
        self.layer, self.reentrant = layer, reentrant

    def forward(self, x):
        return checkpoint(self.layer, x, use_reentrant=self.reentrant)


@needs_library
def test_blocks_in_sequence_and_a_graph_that_is_kept():
    blocks, x = nn.Sequential(Block(), Block(), Block()), normal(2, 4, 5, 8)
    plain = nn.Sequential(*(block.plain() for block in blocks))
    theirs = with_gradients(plain, x)
    leaf = x.clone().requires_grad_()
    y = blocks(leaf)
    for _ in range(2):
        ours = torch.autograd.grad(y.square().sum(), [leaf, *blocks.parameters()], retain_graph=True)
        assert_same(ours, theirs[1:])


@needs_library
def test_gradients_that_are_given_are_left_as_they_are():
    x, weight, bias = (each.requires_grad_() for each in conv_inputs((1, 4, 5, 8), 3))
    x_again, y = branch_off(CASES["conv_3x3"].layer((x, weight, bias)), x * 1)
    y, y2 = read_twice(y)
    given = [normal(*x.shape, seed=seed) for seed in range(3)]
    before = [each.clone() for each in given]
    torch.autograd.grad((y, y2, x_again), (x, weight, bias), given)
    assert all(torch.equal(one, other) for one, other in zip(given, before, strict=True))


@needs_library
def test_functional_calls():
    block, lender, x = Block(), Block(), normal(2, 4, 5, 8)
    with torch.no_grad():
        lender.layer.weight.mul_(2)
    lent = dict(lender.named_parameters())
    y = torch.func.functional_call(block, lent, x)
    ours = torch.autograd.grad(y.square().sum(), list(lent.values()))
    assert_same((y, *ours), [each for i, each in enumerate(with_gradients(lender.plain(), x)) if i != 1])


@needs_library
def test_no_second_derivative():
    block, x = Block(), normal(1, 4, 5, 8).requires_grad_()
    (dx,) = torch.autograd.grad(block(x).sum(), x, create_graph=True)
    with pytest.raises(NotImplementedError, match="depthwise_conv has first derivatives only"):
        dx.sum().backward()


@needs_library
def test_programs_have_plain_ops():
    """Compiled ones and traces know nothing of second readers."""
    block, x = Block(), normal(2, 4, 5, 8)
    compiled = torch.compile(block, fullgraph=True, backend="aot_eager")
    assert_same(with_gradients(block, x, lambda _, x: compiled(x)), with_gradients(block.plain(), x))
    traced = torch.jit.trace(block, x)
    assert_near(traced(x), block(x), 1e-12)
    program = make_fx(lambda x: torch.autograd.grad(block(x).square().sum(), block.layer.weight)[0])(x)
    assert_near(program(x), with_gradients(block.plain(), x)[2], 1e-12)


class Additions(TorchDispatchMode):
    """Counts the sums of two maps."""

    def __init__(self, shape):
        super().__init__()
        self.shape, self.count = shape, 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func.overloadpacket in (torch.ops.aten.add, torch.ops.aten.add_):
            self.count += all(isinstance(each, Tensor) and each.shape == self.shape for each in args[:2])
        return func(*args, **(kwargs or {}))


@needs_library
def test_no_pass_adds_gradients():
    x, counts = normal(2, 4, 5, 8).requires_grad_(), []
    for plain in (False, True):
        block = Block().plain() if plain else Block()
        y = block(x).sum()
        with Additions(x.shape) as additions:
            torch.autograd.grad(y, x)
        counts.append(additions.count)
    assert counts == [0, 2]


@needs_library
def test_a_hook_sees_all_of_a_gradient():
    """So do retain_grad and what else is asked for before the map is read."""
    for ask in (lambda y, seen: y.register_hook(seen.append), lambda y, seen: y.retain_grad()):
        y, seen = CASES["conv_3x3"].layer(conv_inputs((1, 4, 5, 8), 3))(normal(1, 4, 5, 8).requires_grad_()), []
        ask(y, seen)
        first, second = read_twice(y)
        (first.sum() + 3 * second.sum()).backward()
        assert torch.equal(seen[0] if seen else y.grad, torch.full_like(y, 4))


@needs_library
def test_torch_refuses_to_change_one_of_two_maps():
    y = CASES["conv_3x3"].layer(conv_inputs((1, 4, 5, 8), 3))(normal(1, 4, 5, 8).requires_grad_())
    y, y_again = read_twice(y)
    with pytest.raises(RuntimeError, match="modified inplace"):
        (y.mul_(2).sum() + y_again.sum()).backward()


@needs_library
def test_nothing_is_kept_of_maps_that_are_gone():
    gc.collect()
    before = len(readers._again_of)
    y = Conv()(normal(2, 4, 5, 8))
    assert len(readers._again_of) == before + 1
    del y
    assert len(readers._again_of) == before


@needs_library
def test_a_result_keeps_no_input():
    """Once the backward pass has run, of layers in a row the last result is all that lives."""
    x, y, kept = None, normal(2, 4, 5, 8).requires_grad_(), []
    for _ in range(3):
        x, y = branch_off(Conv(), y)
        kept += [weakref.ref(x), weakref.ref(y)]
    (x.sum() + y.sum()).backward()
    del x
    gc.collect()
    assert [each() is not None for each in kept] == [False] * 5 + [True]
