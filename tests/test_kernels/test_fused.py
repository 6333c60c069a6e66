"""The ops around the scans agree with their plain twins, in values and all gradients, and as torch sees them."""

import math
from collections.abc import Callable
from typing import NamedTuple

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.fx.experimental.proxy_tensor import make_fx
from torch.utils.flop_counter import FlopCounterMode

from mmmsv.kernels import BACKENDS, depthwise_conv, gate, layer_norm, merge_scales, ops, use_backend
from mmmsv.kernels.backends.cpu import library
from mmmsv.kernels.backends.torch import fused as torch_fused
from mmmsv.kernels.dispatch import Kernel

from .scan_inputs import INTERPRETED, RUNNABLE, TOLERANCE, assert_near

CPU = torch.device("cpu")
needs_library = pytest.mark.skipif(
    library.why_not(CPU) is not None, reason="there is no C++ library here: only the twins would be compared"
)
needs_opcheck = pytest.mark.skipif(torch.__version__ < (2, 4), reason="torch.library.opcheck came with torch 2.4")
SIZES = [(2, 5, 9, 33), (1, 1, 1, 3), (3, 7, 4, 40), (1, 16, 17, 130), (9, 2, 3, 16)]  # batch, H, W, D
INTERPRETED_SIZES = [(2, 5, 4, 33), (1, 1, 1, 3), (1, 4, 7, 72)]
CONVS = [  # kernel, stride, activation, residual, bias
    (3, 1, "silu", False, True),
    (3, 1, "gelu", True, True),
    (3, 1, "none", True, False),
    (3, 2, "gelu", False, False),
    (7, 1, "silu", False, False),
    (7, 1, "none", True, True),
    (7, 2, "silu", False, True),
    (7, 3, "none", False, True),
    (7, 7, "gelu", False, True),
]


def normal(*shape, dtype=torch.float64, seed=0):
    generator = torch.Generator().manual_seed(seed + sum(shape))
    return torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype)


def wide(dtype):
    return torch.promote_types(dtype, torch.float32)


def conv_inputs(size, kernel, bias=True, dtype=torch.float64):
    channels = size[-1]
    return (
        normal(*size, dtype=dtype),
        normal(channels, 1, kernel, kernel, dtype=wide(dtype)) / kernel,
        normal(channels, dtype=wide(dtype)) if bias else None,
    )


def merge_inputs(size, routes, stride, dtype=torch.float64):
    batch, height, width, channels = size
    half = (batch, routes, -(-height // stride), -(-width // stride), channels)
    return (
        normal(*size, dtype=dtype),
        normal(*half, dtype=dtype, seed=1),
        normal(channels, dtype=wide(dtype)),
        normal(channels, dtype=wide(dtype), seed=1),
    )


def results(function, tensors, dtype=None):
    """Return what ``function`` makes of the tensors, computed in ``dtype`` if given, and all gradients."""
    leaves = [None if each is None else each.detach().clone().requires_grad_() for each in tensors]
    return with_gradients(
        function(*(each if each is None or dtype is None else each.to(dtype) for each in leaves)), leaves
    )


def with_gradients(y, leaves):
    """Return y, or all results where there are several, and the gradients of the leaves."""
    ys = all_of(y)
    weights = [normal(*each.shape).to(each.dtype) for each in ys]
    return *ys, *torch.autograd.grad(ys, [each for each in leaves if each is not None], weights)


def all_of(y):
    return y if isinstance(y, tuple) else (y,)


def with_a_kernel(op):
    """Parametrise over the backends that have a kernel for an op and can run here, and over sizes: few to interpret."""
    have = [name for name in RUNNABLE if isinstance(getattr(BACKENDS[name], op), Kernel)]
    cases = [
        pytest.param(name, size, marks=[pytest.mark.slow] if name in INTERPRETED else [])
        for name in have
        for size in (INTERPRETED_SIZES if name in INTERPRETED else SIZES)
    ]
    return pytest.mark.parametrize(("backend", "size"), cases or [pytest.param("", (), marks=needs_library)])


def dtypes_for(backend):
    return (torch.float32, torch.bfloat16) if backend in INTERPRETED else TOLERANCE


def assert_agree(backend, op, twin, tensors, dtype):
    exact = results(twin, tensors, dtype=torch.float64)
    with use_backend(backend):
        ours = results(op, tensors)
    assert ours[0].dtype == dtype
    # A gradient of nothing but rounding, as that of a norm over one channel would be, is compared with 1.
    for one, other in zip(ours, exact, strict=True):
        assert_near(
            one.double() / max(other.abs().max().item(), 1e-2),
            other.double() / max(other.abs().max().item(), 1e-2),
            3 * TOLERANCE[dtype],
        )


@with_a_kernel("depthwise_conv")
@pytest.mark.parametrize(("kernel", "stride", "activation", "residual", "bias"), CONVS)
def test_depthwise_conv(backend, size, kernel, stride, activation, residual, bias):
    options = (stride, activation, residual)
    for dtype in dtypes_for(backend):
        tensors = conv_inputs(size, kernel, bias, dtype)
        assert_agree(
            backend,
            lambda *t: depthwise_conv(*t, *options),
            lambda *t: torch_fused.depthwise_conv(*t, *options),
            tensors,
            dtype,
        )


@with_a_kernel("gate")
@pytest.mark.parametrize("given", [("z", "weight"), ("z",), ("weight",)])
def test_gate(backend, size, given):
    for dtype in dtypes_for(backend):
        z = normal(*size, dtype=dtype, seed=1) if "z" in given else None
        weight = normal(size[0], size[3], dtype=wide(dtype)) if "weight" in given else None
        assert_agree(backend, gate, torch_fused.gate, (normal(*size, dtype=dtype), z, weight), dtype)


@with_a_kernel("layer_norm")
def test_layer_norm(backend, size):
    for dtype in dtypes_for(backend):
        tensors = (normal(*size, dtype=dtype), *merge_inputs(size, 1, 1, dtype)[2:])
        assert_agree(
            backend,
            lambda *t: layer_norm(*t, 1e-5),
            lambda *t: torch_fused.layer_norm(*t, 1e-5, torch.float64),
            tensors,
            dtype,
        )


@with_a_kernel("layer_norm")
def test_layer_norm_gives_another_dtype(backend, size):
    tensors = (normal(*size, dtype=torch.float32), *merge_inputs(size, 1, 1, torch.float32)[2:])
    assert_agree(
        backend,
        lambda *t: layer_norm(*t, 1e-5, torch.bfloat16),
        lambda *t: torch_fused.layer_norm(*t, 1e-5, torch.float64),
        tensors,
        torch.bfloat16,
    )


@with_a_kernel("merge_scales")
def test_the_mean_alone_has_gradients(backend, size):
    tensors = merge_inputs(size, 2, 2, torch.float32)
    assert_agree(
        backend,
        lambda *t: merge_scales(*t, 1e-5, True)[1],
        lambda *t: torch_fused.merge_scales(*t, 1e-5, True)[1],
        tensors,
        torch.float32,
    )


@with_a_kernel("merge_scales")
@pytest.mark.parametrize(
    ("norm_first", "routes", "stride"),
    [(True, 3, 2), (True, 1, 1), (True, 2, 3), (True, 1, 7), (False, 1, 2), (False, 1, 3)],
)
def test_merge_scales(backend, size, norm_first, routes, stride):
    for dtype in dtypes_for(backend):
        assert_agree(
            backend,
            lambda *t: merge_scales(*t, 1e-5, norm_first),
            lambda *t: torch_fused.merge_scales(*t, 1e-5, norm_first),
            merge_inputs(size, routes, stride, dtype),
            dtype,
        )


class Case(NamedTuple):
    """An op with tensors and options."""

    function: Callable[..., Tensor]
    tensors: tuple[Tensor, ...]
    options: tuple[object, ...] = ()

    def op(self, *tensors):
        return self.function(*tensors, *self.options)


CASES = {
    "depthwise_conv": Case(depthwise_conv, conv_inputs((2, 5, 6, 18), 7), (2, "silu", False)),
    "depthwise_conv-residual": Case(depthwise_conv, conv_inputs((2, 5, 6, 18), 3), (1, "gelu", True)),
    "gate": Case(gate, (normal(2, 5, 6, 18), normal(2, 5, 6, 18, seed=1), normal(2, 18))),
    "merge_scales": Case(merge_scales, merge_inputs((2, 5, 6, 18), 3, 2), (1e-5, True)),
    "merge_scales-norm_last": Case(merge_scales, merge_inputs((2, 5, 6, 18), 1, 2), (1e-5, False)),
}
each_case = pytest.mark.parametrize("case", CASES.values(), ids=CASES)


@each_case
def test_gradcheck(case):
    leaves = [tensor.clone().requires_grad_() for tensor in case.tensors]
    assert torch.autograd.gradcheck(case.op, leaves, fast_mode=True)


def _spread(weight):
    return torch.stack((torch.full_like(weight, math.nan), weight), -1)[..., 1]


@each_case
def test_layouts(case):
    """Maps that are no dense channels-last ones give the same: turned, cut out of larger ones, channels first."""
    expected = results(case.op, case.tensors)

    def turned(tensor):
        return tensor.transpose(1, 2).contiguous().transpose(1, 2)

    def cut(tensor):
        return torch.cat((tensor, tensor), 0)[: len(tensor)].repeat_interleave(2, -2)[..., ::2, :]

    def channels_first(tensor):
        return tensor.movedim(-1, 1).contiguous().movedim(1, -1)

    for layout in (turned, cut, channels_first):
        leaves = [tensor.clone().requires_grad_() for tensor in case.tensors]
        y = case.op(*(layout(leaf) if leaf.dim() > 3 else _spread(leaf) for leaf in leaves))
        for one, other in zip(with_gradients(y, leaves), expected, strict=True):
            assert_near(one, other, 1e-12)


@needs_library
@each_case
def test_the_number_of_threads_changes_no_bit(case):
    tensors = [tensor.float() for tensor in case.tensors]
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        one = results(case.op, tensors)
        torch.set_num_threads(3)
        three = results(case.op, tensors)
    finally:
        torch.set_num_threads(before)
    assert all(torch.equal(*pair) for pair in zip(one, three, strict=True))


@needs_library
@pytest.mark.parametrize("activation", ["silu", "gelu"])
def test_activations_over_their_range(activation):
    """A kernel that passes x on alone: the activation itself, at all sizes of numbers, infinite ones and NaN."""
    x = torch.cat(
        (torch.linspace(-30, 30, 4001), torch.tensor([0.0, 1e-30, -1e-30, 1e30, -1e30, math.inf, -math.inf, math.nan]))
    )
    only_x = torch.zeros(1, 1, 3, 3)
    only_x[..., 1, 1] = 1
    leaf = x.view(-1, 1, 1, 1).requires_grad_()
    y = depthwise_conv(leaf, only_x, None, 1, activation)
    exact_leaf = x.double().detach().requires_grad_()
    exact = torch_fused.ACTIVATION_FUNCTIONS[activation](exact_leaf)
    torch.testing.assert_close(y.flatten().double(), exact, rtol=3e-7, atol=3e-7, equal_nan=True)
    finite = x.abs() < 1e20
    (ours,) = torch.autograd.grad(y.flatten()[finite].sum(), leaf)
    (theirs,) = torch.autograd.grad(exact[finite].sum(), exact_leaf)
    torch.testing.assert_close(ours.flatten()[finite].double(), theirs[finite], rtol=1e-6, atol=1e-6)


@needs_library
def test_a_nan_stays_where_it_is():
    x, weight, bias = (tensor.float() for tensor in conv_inputs((1, 9, 9, 20), 3))
    x[0, 4, 4, 7] = math.nan
    wrong = depthwise_conv(x, weight, bias).isnan()
    assert wrong.sum() == 9
    assert wrong[0, 3:6, 3:6, 7].all()


@each_case
@pytest.mark.parametrize("size", [(0, 5, 6, 18), (2, 0, 6, 18)])
def test_empty_maps(case, size):
    _, second, *others = (tensor.shape for tensor in case.tensors)
    if case.function is gate:
        shapes = [size, size, (size[0], size[3])]
    else:
        shapes = [size, second if case.function is depthwise_conv else (size[0], *second[1:]), *others]
    leaves = [torch.randn(shape, requires_grad=True) for shape in shapes]
    y = all_of(case.op(*leaves))[0]
    assert y.numel() == 0
    for leaf, gradient in zip(leaves, torch.autograd.grad(y.sum(), leaves), strict=True):
        assert gradient.shape == leaf.shape
        assert not gradient.any()


@needs_library
@each_case
def test_other_backends_take_the_twins(case, monkeypatch):
    """Where another backend of the scans is asked for, no kernel of ours runs."""
    expected = results(case.op, case.tensors)

    def refuse(*_):
        raise RuntimeError("a kernel ran")

    monkeypatch.setattr(library.LibraryOp, "_run", refuse)
    with pytest.raises(RuntimeError, match="a kernel ran"):
        case.op(*case.tensors)
    with use_backend("torch"):
        for one, other in zip(results(case.op, case.tensors), expected, strict=True):
            assert_near(one, other, 1e-12)


def test_nothing_to_gate():
    y = normal(1, 2, 3, 4)
    assert gate(y) is y


@pytest.mark.slow
@needs_library
@needs_opcheck
@each_case
def test_opcheck(case):
    op, name, options = torch.ops.mmmsv, case.function.__name__, case.options
    torch.library.opcheck(getattr(op, name), (*(tensor.clone().requires_grad_() for tensor in case.tensors), *options))
    *ys, kept = getattr(op, name)(*case.tensors, *options)
    gradients = map(torch.randn_like, ys)
    torch.library.opcheck(getattr(op, f"{name}_backward"), (*gradients, kept, *case.tensors, *options))


@pytest.mark.slow
@needs_opcheck
@pytest.mark.skipif("triton" not in RUNNABLE, reason="there is no Triton here")
def test_opcheck_of_the_norm():
    tensors = (normal(1, 2, 3, 4), normal(4), normal(4, seed=1))
    with use_backend("triton"):
        leaves = tuple(tensor.clone().requires_grad_() for tensor in tensors)
        torch.library.opcheck(torch.ops.mmmsv.layer_norm, (*leaves, 1e-5, torch.float64))
        y, moments = torch.ops.mmmsv.layer_norm(*tensors, 1e-5, torch.float64)
        torch.library.opcheck(torch.ops.mmmsv.layer_norm_backward, (y, moments, *tensors, 1e-5, torch.float64))


@pytest.mark.parametrize("backend", ["cpu", "torch"])
def test_compiles_without_graph_break(backend):
    if backend == "cpu" and library.why_not(CPU) is not None:
        pytest.skip("there is no C++ library here")

    def block(x, weight, bias, norm_weight, norm_bias):
        full = depthwise_conv(x, weight, bias, 1, "gelu", True)
        half = depthwise_conv(x, weight, bias, 2, "silu")
        y, mean = merge_scales(full, half.unsqueeze(1), norm_weight, norm_bias, 1e-5, True)
        return gate(layer_norm(y, norm_weight, norm_bias, 1e-5), x, mean)

    compiled = torch.compile(block, fullgraph=True, backend="aot_eager", dynamic=True)
    weights = (*conv_inputs((1, 1, 1, 6), 3)[1:], normal(6), normal(6))
    with use_backend(backend):
        for size in ((2, 5, 7, 6), (3, 8, 4, 6)):
            tensors = (normal(*size), *weights)
            for one, other in zip(results(compiled, tensors), results(block, tensors), strict=True):
                torch.testing.assert_close(one, other)


@needs_library
def test_autocast():
    """Under autocast maps may be narrow and weights wide; where maps differ the widest is taken."""
    y, z = normal(1, 4, 5, 8, dtype=torch.float32), normal(1, 4, 5, 8, dtype=torch.bfloat16, seed=1)
    with torch.autocast("cpu", torch.bfloat16):
        assert gate(y, z).dtype == torch.float32
        assert gate(y.bfloat16(), z, torch.ones(1, 8)).dtype == torch.bfloat16
    with pytest.raises(TypeError, match=r"gate: z is torch.bfloat16 and y is torch.float32; cast one"):
        gate(y, z)


@needs_library
def test_flops():
    x, weight, bias = conv_inputs((2, 5, 7, 6), 7, dtype=torch.float32)
    x.requires_grad_()
    forward = 2 * 2 * 3 * 4 * 6 * 49
    with FlopCounterMode(display=False) as counter:
        y = depthwise_conv(x, weight, bias, 2, "silu")
    assert counter.get_total_flops() == forward
    with FlopCounterMode(display=False) as counter:
        y.sum().backward()
    assert counter.get_total_flops() == 3 * forward


def test_no_forward_mode_derivative():
    with pytest.raises(NotImplementedError, match="gate has no forward-mode derivative, and y carries a tangent"):
        torch.func.jvp(lambda y: gate(y, y), (normal(1, 2, 3, 4),), (normal(1, 2, 3, 4),))


def test_a_kernel_computes_where_a_backend_has_one():
    x = normal(1)
    assert isinstance(ops.gate.implementation(x), Kernel) == (library.why_not(CPU) is None)
    assert ops.gate.implementation(x.to("meta")) is torch_fused.gate
    with use_backend("reference"):
        assert ops.gate.implementation(x) is torch_fused.gate


def test_traces_hold_ops_that_others_know():
    """torch.jit.trace, and what counts or exports through it, sees the twins."""
    x, weight, bias = (tensor.float() for tensor in conv_inputs((2, 5, 6, 18), 3))
    traced = torch.jit.trace(lambda x: gate(depthwise_conv(x, weight, bias, 1, "silu"), x), x)
    assert "mmmsv::" not in str(traced.graph)
    assert_near(traced(x), gate(depthwise_conv(x, weight, bias, 1, "silu"), x), 1e-5)


@each_case
def test_nothing_goes_past_who_looks_on(case):
    """Transforms, subclasses, fake tensors, early traces, and tensors that stand for others, without any gradient."""
    op, tensors = lambda *given: all_of(case.op(*given))[0], case.tensors
    expected = op(*tensors)
    with torch.no_grad():
        with pytest.raises(NotImplementedError, match=f"{case.function.__name__} does not work under torch.func.vmap"):
            torch.func.vmap(op)(*(tensor.unsqueeze(0) for tensor in tensors))
        with FakeTensorMode() as mode:
            fakes = [mode.from_tensor(tensor) for tensor in tensors]
        assert isinstance(op(*fakes), FakeTensor)
        assert op(*fakes).shape == expected.shape
        if torch.__version__ >= (2, 2):  # before, nothing tells of such a trace
            program = make_fx(op, pre_dispatch=True)(*tensors)
            assert_near(program(*tensors), expected, 1e-12)
        negated = [torch.complex(torch.zeros_like(tensor), -tensor).conj().imag for tensor in tensors]
        assert all(tensor.is_neg() for tensor in negated)
        assert_near(op(*negated), expected, 1e-12)
        zeros = torch._efficientzerotensor(tensors[0].shape, dtype=torch.float64)
        assert op(zeros, *tensors[1:]).shape == expected.shape
