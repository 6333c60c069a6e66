"""Maps with two readers: the kernels add the gradients of both, and they are those that autograd would add."""

import copy
import gc
from collections.abc import Callable
from typing import NamedTuple

import pytest
import torch
from torch import Tensor, nn
from torch.fx.experimental.proxy_tensor import make_fx
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.checkpoint import checkpoint

from mmmsv.kernels import BACKENDS, branch_off, depthwise_conv, layer_norm, read_twice, readers, use_backend
from mmmsv.kernels.dispatch import Kernel

from .fused_inputs import conv_inputs, needs_library, normal, wide
from .scan_inputs import INTERPRETED, RUNNABLE, TOLERANCE, assert_near, device_of


class Case(NamedTuple):
    """An op with its tensors and options; x, y, and y again have readers."""

    function: Callable[..., Tensor]
    tensors: Callable[[torch.dtype], tuple[Tensor, ...]]
    options: tuple[object, ...]

    def layer(self, tensors):
        return lambda x: self.function(x, *tensors[1:], *self.options)


def conv(size, kernel, *options, bias=True):
    return Case(depthwise_conv, lambda dtype: conv_inputs(size, kernel, bias, dtype), options)


def norm(size, *options):
    channels = size[-1]
    return Case(
        layer_norm,
        lambda dtype: (
            normal(*size, dtype=dtype),
            normal(channels, dtype=wide(dtype)),
            normal(channels, dtype=wide(dtype), seed=1),
        ),
        (1e-5, *options),
    )


CASES = {
    "conv_3x3": conv((2, 5, 4, 33), 3, 1, "silu"),
    "conv_3x3-residual": conv((1, 4, 7, 72), 3, 1, "gelu", True),
    "conv_3x3-no_activation": conv((2, 3, 5, 16), 3, 1, "none", True, bias=False),
    "conv_3x3-stride": conv((1, 5, 6, 18), 3, 2, "gelu", bias=False),
    "conv_7x7": conv((1, 4, 5, 20), 7, 1, "silu"),
    "conv_7x7-stride": conv((2, 5, 7, 24), 7, 2, "silu"),
    "conv_7x7-long_stride": conv((1, 9, 8, 8), 7, 7, "none"),
    "norm": norm((2, 5, 4, 33)),
    "norm-aligned": norm((3, 3, 23, 72)),
}
READERS = [("y", "y2", "x"), ("y", "x"), ("y", "y2"), ("y2", "x"), ("y2",), ("x",)]


def cases():
    """Each op on each backend that has a kernel of it and can run here; an interpreter has few."""
    for backend in RUNNABLE:
        for name, case in CASES.items():
            if isinstance(getattr(BACKENDS[backend], case.function.__name__), Kernel):
                marks = [pytest.mark.slow] if backend in INTERPRETED else []
                yield pytest.param(backend, case, id=f"{backend}-{name}", marks=marks)


def plain_branch_off(layer, x):
    return x, layer(x)


def plain_read_twice(y):
    return y, y


def losses(maps, read):
    """Of each reader another one: the gradient of y2 lies otherwise in memory, that of x has none of its own."""
    weights = [normal(*maps["y"].shape, seed=seed).to(maps["y"]) for seed in (2, 3)]
    made = {
        "y": lambda y: (y * weights[0]).sum(),
        "y2": lambda y: (y.permute(0, 3, 1, 2).contiguous() * weights[1].permute(0, 3, 1, 2)).sum(),
        "x": lambda x: x.sum(),
    }
    return sum(made[name](maps[name]) for name in read)


def gradients(case, tensors, read, trained=(True, True, True), plain=False):
    """Return the gradients of the tensors, where parts of the maps are read; None where there is none."""
    leaves = [
        None if each is None else each.detach().clone().requires_grad_(train)
        for each, train in zip(tensors, trained, strict=True)
    ]
    x = leaves[0] * 1 if trained[0] else leaves[0]  # not a leaf, as in a model
    x_again, y = (plain_branch_off if plain else branch_off)(case.layer(leaves), x)
    y, y2 = (plain_read_twice if plain else read_twice)(y)
    assert plain or y2 is not y
    assert plain or (x_again is not x) == trained[0]
    return torch.autograd.grad(
        losses({"x": x_again, "y": y, "y2": y2}, read),
        [each for each in leaves if each is not None and each.requires_grad],
        allow_unused=True,
    )


def assert_same(ours, theirs, tolerance=1e-12):
    for one, other in zip(ours, theirs, strict=True):
        assert (one is None) == (other is None)
        if one is not None:
            assert one.dtype == other.dtype
            assert_near(one, other, tolerance)


@pytest.mark.parametrize("read", READERS, ids="-".join)
@pytest.mark.parametrize(("backend", "case"), cases())
def test_gradients(backend, case, read):
    tensors = [None if each is None else each.to(device_of(backend)) for each in case.tensors(torch.float64)]
    with use_backend(backend):
        assert_same(gradients(case, tensors, read), gradients(case, tensors, read, plain=True))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("backend", "case"), cases())
def test_narrow_dtypes(backend, case, dtype):
    """What the kernels add is rounded once."""
    tensors = [None if each is None else each.to(device_of(backend)) for each in case.tensors(dtype)]
    exact = [None if each is None else each.double() for each in tensors]
    with use_backend(backend):
        ours, theirs = gradients(case, tensors, READERS[0]), gradients(case, exact, READERS[0], plain=True)
    assert [each.dtype for each in ours] == [each.dtype for each in tensors if each is not None]
    assert_same([each.double() for each in ours], theirs, 3 * TOLERANCE[dtype])


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.skipif("triton" not in RUNNABLE, reason="there is no Triton here")
def test_a_norm_that_gives_another_dtype(dtype):
    """The gradients of y are in its dtype, and what is added to that of x in x's."""
    other = {torch.float32: torch.bfloat16, torch.bfloat16: torch.float32}[dtype]
    case = norm((2, 3, 5, 16), other)
    tensors = [each.to(device_of("triton")) for each in case.tensors(dtype)]
    with use_backend("triton"):
        ours, theirs = (gradients(case, tensors, READERS[0], plain=plain) for plain in (False, True))
    assert_same(ours, theirs, 6 * TOLERANCE[torch.bfloat16])


@needs_library
@pytest.mark.parametrize("trained", [(True, False, False), (False, True, True), (False, False, True)])
@pytest.mark.parametrize("read", READERS[:2], ids="-".join)
def test_some_are_not_trained(read, trained):
    case = CASES["conv_7x7-stride"]
    both = [gradients(case, case.tensors(torch.float64), read, trained, plain) for plain in (False, True)]
    assert_same(*both)


@needs_library
@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_without_gradients_there_is_one_map(mode):
    x, *weights = conv_inputs((1, 4, 5, 8), 3)
    weights[0].requires_grad_()
    with mode():
        x_again, y = branch_off(CASES["conv_3x3"].layer((x, *weights)), x)
        assert x_again is x
        assert read_twice(y) == (y, y)


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
def test_nothing_is_kept_of_maps_that_are_gone():
    gc.collect()
    before = len(readers._others_of)
    y = Conv()(normal(2, 4, 5, 8))
    assert len(readers._others_of) == before + 1
    del y
    assert len(readers._others_of) == before
