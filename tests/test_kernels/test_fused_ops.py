"""The ops around the scans as torch sees them: layouts, autograd, compilers, counters, and what goes past them."""

import math
from collections.abc import Callable
from typing import NamedTuple

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.fx.experimental.proxy_tensor import make_fx
from torch.utils.flop_counter import FlopCounterMode

from mmmsv.kernels import depthwise_conv, gate, layer_norm, merge_scales, ops, use_backend
from mmmsv.kernels.backends.cpu import library
from mmmsv.kernels.backends.torch import fused as torch_fused
from mmmsv.kernels.dispatch import Kernel

from .fused_inputs import (
    CPU,
    all_of,
    conv_inputs,
    merge_inputs,
    needs_library,
    normal,
    results,
    spread,
    with_gradients,
)
from .scan_inputs import RUNNABLE, assert_near

needs_opcheck = pytest.mark.skipif(torch.__version__ < (2, 4), reason="torch.library.opcheck came with torch 2.4")


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
    "merge_scales": Case(merge_scales, merge_inputs((2, 5, 6, 18), 3, 2), (1e-5, True, None)),
    "merge_scales-norm_last": Case(merge_scales, merge_inputs((2, 5, 6, 18), 1, 2), (1e-5, False, torch.float64)),
}
each_case = pytest.mark.parametrize("case", CASES.values(), ids=CASES)


@each_case
def test_gradcheck(case):
    leaves = [tensor.clone().requires_grad_() for tensor in case.tensors]
    assert torch.autograd.gradcheck(case.op, leaves, fast_mode=True)


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
        y = case.op(*(layout(leaf) if leaf.dim() > 3 else spread(leaf) for leaf in leaves))
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
    arguments = (*gradients, kept, *case.tensors, *options)
    torch.library.opcheck(getattr(op, f"{name}_backward"), arguments)
    if name == "depthwise_conv":
        added = (torch.randn_like(ys[0]), torch.randn_like(case.tensors[0]))
        torch.library.opcheck(op.depthwise_conv_backward, (*arguments, *added))


@pytest.mark.slow
@needs_opcheck
@pytest.mark.skipif("triton" not in RUNNABLE, reason="there is no Triton here")
def test_opcheck_of_the_norm():
    tensors = (normal(1, 2, 3, 4), normal(4), normal(4, seed=1))
    with use_backend("triton"):
        leaves = tuple(tensor.clone().requires_grad_() for tensor in tensors)
        torch.library.opcheck(torch.ops.mmmsv.layer_norm, (*leaves, 1e-5, torch.float64))
        y, moments = torch.ops.mmmsv.layer_norm(*tensors, 1e-5, torch.float64)
        arguments = (y, moments, *tensors, 1e-5, torch.float64)
        for added in ((), (y,), (None, y), (y, y)):
            torch.library.opcheck(torch.ops.mmmsv.layer_norm_backward, (*arguments, *added))


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
        stacked = [torch.stack((tensor, 2 * tensor)) for tensor in tensors]
        if torch.__version__ < "2.5":
            with pytest.raises(
                NotImplementedError, match=f"{case.function.__name__} works under .*vmap from torch 2.5"
            ):
                torch.func.vmap(op)(*stacked)
        else:
            assert_near(torch.func.vmap(op)(*stacked)[0], expected, 1e-12)
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
