"""Linear layers on maps are torch's, whichever of its products computes them."""

import pytest
import torch
from torch.autograd import forward_ad
from torch.fx.experimental.proxy_tensor import make_fx
from torch.nn import functional
from torch.utils.flop_counter import FlopCounterMode

from mmmsv.kernels import linear

LARGE, SMALL = (2, 40, 40, 48), (2, 3, 5, 48)  # on either side of what MKL is left with


def weights(outputs=40, inputs=48, dtype=torch.float32):
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(shape, generator=generator, dtype=dtype) for shape in ((outputs, inputs), (outputs,))]


@pytest.mark.parametrize("size", [LARGE, SMALL, (1, 1, 1, 48), (0, 4, 4, 48), (7, 48), (2, 900, 48)])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode, torch.enable_grad])
def test_is_torchs(size, bias, mode):
    weight, b = weights()
    x = torch.randn(size)
    with mode():
        y = linear(x, weight, b if bias else None)
    torch.testing.assert_close(y, functional.linear(x, weight, b if bias else None), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_other_dtypes(dtype):
    x, (weight, bias) = torch.randn(LARGE).to(dtype), weights(dtype=dtype)
    torch.testing.assert_close(linear(x, weight, bias), functional.linear(x, weight, bias))


@pytest.mark.parametrize("size", [LARGE, SMALL, (2, 0, 4, 48)])
@pytest.mark.parametrize("trained", [(0, 1, 2), (0,), (1,), (2,)])  # x, weight, bias
def test_gradients(size, trained):
    tensors = (torch.randn(size), *weights())
    results = []
    for function in (linear, functional.linear):
        leaves = [tensor.clone().requires_grad_(i in trained) for i, tensor in enumerate(tensors)]
        y = function(*leaves)
        dy = torch.randn(y.shape, generator=torch.Generator().manual_seed(1))
        results.append((y, *torch.autograd.grad(y, [leaves[i] for i in trained], dy)))
    for ours, theirs in zip(*results, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-3)


def test_layouts():
    """Maps that lie otherwise in memory, parts of a weight, and biases that are no dense vectors."""
    weight, bias = weights()
    with torch.no_grad():
        for x in (torch.randn(2, 48, 40, 40).permute(0, 2, 3, 1), torch.randn(1, 1, 1, 48).expand(LARGE)):
            for part in weight.chunk(2):
                torch.testing.assert_close(linear(x, part), functional.linear(x, part), rtol=1e-4, atol=1e-4)
            for b in (torch.randn(80)[::2], torch.randn(1).expand(40), torch.randn(1)):
                y = linear(x, weight, b)
                torch.testing.assert_close(y, functional.linear(x, weight, b), rtol=1e-4, atol=1e-4)
        strided = torch.randn(40, 96)[:, ::2]
        torch.testing.assert_close(linear(x, strided, bias), functional.linear(x, strided, bias), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(("weight", "bias"), [((40, 47), (40,)), ((40, 48), (39,)), ((48,), (1,))])
def test_wrong_shapes_get_torchs_error(weight, bias):
    arguments = torch.randn(LARGE), torch.randn(weight), torch.randn(bias)
    with torch.no_grad(), pytest.raises(RuntimeError) as theirs:
        functional.linear(*arguments)
    with torch.no_grad(), pytest.raises(RuntimeError) as ours:
        linear(*arguments)
    assert str(ours.value) == str(theirs.value)


def test_autocast():
    x, (weight, bias) = torch.randn(LARGE), weights()
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        assert linear(x, weight, bias).dtype == torch.bfloat16


def test_flops_are_counted():
    x, (weight, _) = torch.randn(LARGE), weights()
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        linear(x, weight)
    assert counter.get_total_flops() == 2 * 2 * 40 * 40 * 48 * 40


def test_traces_hold_ops_that_others_know():
    """torch.jit.trace, and what counts or exports through it, sees ops of torch alone, none of oneDNN's."""
    weight, bias = weights()
    with torch.no_grad():
        traced = torch.jit.trace(lambda x: linear(x, weight, bias), torch.randn(LARGE))
    assert "mkldnn" not in str(traced.graph)
    x = torch.randn(LARGE)
    torch.testing.assert_close(traced(x), functional.linear(x, weight, bias), rtol=1e-4, atol=1e-4)


@pytest.mark.skipif(not hasattr(torch.compiler, "is_exporting"), reason="torch tells who exports from 2.7 on")
@pytest.mark.parametrize("mode", [torch.no_grad, torch.enable_grad])
def test_compiled_programs_have_one_op_for_the_result_alone(mode):
    """With gradients, and in programs that are exported, they have ops of torch."""
    weight, bias = weights()

    class Layer(torch.nn.Module):
        def forward(self, x):
            return linear(x, weight, bias)

    targets = []

    def backend(program, _):
        targets.extend(str(node.target) for node in program.graph.nodes)
        return program

    x = torch.randn(LARGE)
    torch.compiler.reset()
    with mode():
        y = torch.compile(Layer(), backend=backend, fullgraph=True)(x)
        exported = [torch.export.export(Layer(), (x,), strict=strict) for strict in (True, False)]
    torch.testing.assert_close(y, functional.linear(x, weight, bias), rtol=1e-4, atol=1e-4)
    assert ("mmmsv.linear" in targets) == (mode is torch.no_grad)
    assert not [node for each in exported for node in each.graph.nodes if "mmmsv" in str(node.target)]


def test_compiled_programs_take_parts_of_weights():
    """Inductor's own lowering of oneDNN's product takes nothing but constants."""
    weight, bias = weights()
    x = torch.randn(LARGE)
    torch.compiler.reset()
    compiled = torch.compile(
        lambda x, w: torch.cat([linear(x, part, bias[:20]) for part in w.chunk(2)], -1), dynamic=True
    )
    with torch.no_grad():
        for size in (LARGE, SMALL):
            x = torch.randn(size)
            y = functional.linear(x, weight, bias[:20].repeat(2))
            torch.testing.assert_close(compiled(x, weight), y, rtol=1e-4, atol=1e-4)


def test_transforms_and_early_traces():
    x, (weight, bias) = torch.randn(LARGE), weights()
    tangent = torch.randn(LARGE)
    _, ours = torch.func.jvp(lambda x: linear(x, weight, bias), (x,), (tangent,))
    torch.testing.assert_close(ours, functional.linear(tangent, weight), rtol=1e-4, atol=1e-4)
    ours = torch.func.vmap(lambda x: linear(x, weight, bias))(x.unsqueeze(0))
    torch.testing.assert_close(ours[0], functional.linear(x, weight, bias), rtol=1e-4, atol=1e-4)
    with torch.no_grad(), forward_ad.dual_level():
        y = linear(forward_ad.make_dual(x, tangent), weight, bias)
        ours = forward_ad.unpack_dual(y).tangent
    torch.testing.assert_close(ours, functional.linear(tangent, weight), rtol=1e-4, atol=1e-4)
    with torch.no_grad():
        program = make_fx(lambda x: linear(x, weight, bias), pre_dispatch=True)(x)
    torch.testing.assert_close(program(tangent), functional.linear(tangent, weight, bias), rtol=1e-4, atol=1e-4)
