"""Linear layers on maps are torch's, whichever of its products computes them."""

import pytest
import torch
from torch.autograd import forward_ad
from torch.fx.experimental.proxy_tensor import make_fx
from torch.nn import functional
from torch.utils.flop_counter import FlopCounterMode

from mmmsv.kernels import linear
from mmmsv.kernels.backends.cpu import linear as cpu_linear
from mmmsv.kernels.backends.cpu.library import library
from mmmsv.models.layers import Linear

from .fused_inputs import needs_library

newer = pytest.mark.skipif(
    not hasattr(torch.compiler, "is_exporting"), reason="before torch 2.7 compiled programs have ops of torch alone"
)
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


@needs_library
@pytest.mark.parametrize("outputs", [1, 15, 16, 33, 48, 50, 96, 130])
@pytest.mark.parametrize("inputs", [1, 16, 37, 192])
@pytest.mark.parametrize("rows", [1, 8, 9, 49, 300])
@pytest.mark.parametrize("has_bias", [True, False])
def test_the_library_is_exact_to_the_rounding_of_its_sums(rows, inputs, outputs, has_bias):
    x, (weight, bias) = torch.randn(rows, inputs), weights(outputs, inputs)
    y = cpu_linear.product(x, weight, bias if has_bias else None)
    exact = functional.linear(x.double(), weight.double(), bias.double() if has_bias else None)
    size = functional.linear(x.double().abs(), weight.double().abs(), bias.double().abs())
    assert ((y - exact).abs() / size).max() < 2e-6


@needs_library
@pytest.mark.parametrize("rows", [1, 49, 300])
def test_the_library_gives_the_same_bits_with_any_number_of_threads(rows):
    """As each number of y is summed by one thread, input by input; rows do not depend on each other either."""
    x, (weight, bias) = torch.randn(rows, 192), weights(130, 192)
    before = torch.get_num_threads()
    try:
        results = []
        for threads in (1, 2, 3, 1):
            torch.set_num_threads(threads)
            results.append(cpu_linear.product(x, weight, bias))
    finally:
        torch.set_num_threads(before)
    alone = torch.cat([cpu_linear.product(row[None], weight, bias) for row in x])
    for each in (*results[1:], alone):
        assert torch.equal(each, results[0])


@needs_library
def test_the_library_keeps_nothing_of_a_weight():
    """Whichever way it is changed, the next product is that of the weight as it is now."""
    x, (weight, _) = torch.randn(1, 7, 7, 96), weights(300, 96)
    changes = [lambda w: w.mul_(2), lambda w: w.data.copy_(weight.flip(0)), lambda w: w.numpy().fill(3.0)]
    with torch.no_grad():
        for change in changes:
            linear(x, weight)
            change(weight)
            torch.testing.assert_close(linear(x, weight), functional.linear(x, weight), rtol=1e-4, atol=1e-3)


@needs_library
@pytest.mark.skipif(isinstance(library(), str) or not library().linear_most_rows, reason="it is for AVX-512")
def test_the_library_computes_few_rows(monkeypatch):
    """Of large products without gradients, and nothing else."""
    taken = []
    monkeypatch.setattr(cpu_linear, "product", lambda *values: taken.append(values) or torch.zeros(()))
    few, many, (weight, bias) = torch.randn(1, 14, 14, 96), torch.randn(1, 56, 56, 96), weights(192, 96)
    with torch.no_grad():
        for x, w in ((few, weight), (many, weight), (few, weight[:3]), (few.double(), weight.double())):
            linear(x, w)
        assert len(taken) == 1
        linear(few, weight, bias)
    assert len(taken) == 2
    linear(few, weight.requires_grad_())
    assert len(taken) == 2


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


@newer
@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode, torch.enable_grad])
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
    assert any("mmmsv.onednn_linear" in target for target in targets) == (mode is not torch.enable_grad)
    assert not [node for each in exported for node in each.graph.nodes if "mmmsv" in str(node.target)]


@newer
@pytest.mark.parametrize("backend", ["eager", "aot_eager"])
def test_compiled_derivatives(backend):
    """Without gradients being asked for, there may be derivatives all the same."""
    x, (weight, bias), tangent = torch.randn(LARGE), weights(), torch.randn(LARGE)

    def layer(x):
        return linear(x, weight, bias)

    programs = {
        "jvp": (lambda x: torch.func.jvp(layer, (x,), (tangent,))[1], functional.linear(tangent, weight)),
        "grad": (torch.func.grad(lambda x: layer(x).sum()), weight.sum(0).expand_as(x)),
        "vmap": (lambda x: torch.func.vmap(layer)(x[None])[0], functional.linear(x, weight, bias)),
    }
    for program, expected in programs.values():
        torch.compiler.reset()
        with torch.no_grad():
            torch.testing.assert_close(torch.compile(program, backend=backend)(x), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("trained", [(0, 1, 2), (1,)])
def test_the_op_of_compiled_programs(trained):
    """It has the gradients of torch's, and tells the compiler the truth about its results."""
    tensors = [t.requires_grad_(i in trained) for i, t in enumerate((torch.randn(LARGE), *weights()))]
    op = torch.ops.mmmsv.onednn_linear
    results = [
        torch.autograd.grad(function(*tensors).sum(), [tensors[i] for i in trained])
        for function in (op, functional.linear)
    ]
    for ours, theirs in zip(*results, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-3)
    with torch.no_grad():
        for size in (LARGE, SMALL):
            for x in (torch.randn(size), torch.randn(size).transpose(1, 2), torch.randn(size)[:, ::2]):
                fake = op(x.to("meta"), *(t.to("meta") for t in tensors[1:]))
                real = op(x, *tensors[1:])
                assert (fake.shape, fake.stride(), fake.dtype) == (real.shape, real.stride(), real.dtype)
        ours = torch.func.vmap(op, in_dims=(0, None, None))(torch.randn(2, *LARGE), *tensors[1:])
    assert ours.shape == (2, *LARGE[:3], 40)


class Quantised(torch.Tensor):
    """A weight of 8-bit integers that knows torch's linear layer, and nothing else."""

    @staticmethod
    def __new__(cls, integers, scale):
        return torch.Tensor._make_wrapper_subclass(cls, integers.shape, dtype=torch.float32)

    def __init__(self, integers, scale):
        self.integers, self.scale = integers, scale

    def __repr__(self):
        return "Quantised()"

    def __tensor_flatten__(self):
        return ["integers", "scale"], None

    @classmethod
    def __tensor_unflatten__(cls, tensors, *_):
        return cls(tensors["integers"], tensors["scale"])

    @classmethod
    def __torch_function__(cls, function, types, args=(), kwargs=None):
        if function is functional.linear:
            x, weight, bias = args
            return functional.linear(x, weight.integers.float() * weight.scale, bias)
        with torch._C.DisableTorchFunctionSubclass():
            return function(*args, **(kwargs or {}))

    @classmethod
    def __torch_dispatch__(cls, function, types, args=(), kwargs=None):
        if function in (torch.ops.aten.detach.default, torch.ops.aten.alias.default):
            return cls(args[0].integers, args[0].scale)
        raise NotImplementedError(f"no {function}")


@pytest.mark.parametrize("compiled", [False, pytest.param(True, marks=newer)])
def test_subclasses_see_torchs_function(compiled):
    weight = Quantised(torch.randint(-100, 100, (40, 48), dtype=torch.int8), torch.rand(40, 1))
    layer = Linear(48, 40)
    layer.weight = torch.nn.Parameter(weight, requires_grad=False)
    x = torch.randn(LARGE)
    torch.compiler.reset()
    with torch.no_grad():
        y = (torch.compile(layer, backend="aot_eager") if compiled else layer)(x)
    torch.testing.assert_close(y, functional.linear(x, weight.integers.float() * weight.scale, layer.bias))


def test_devices_get_torchs_error():
    x, (weight, bias) = torch.randn(LARGE), weights()
    with torch.no_grad(), pytest.raises(RuntimeError, match="device"):
        linear(x, weight, bias.to("meta"))


@pytest.mark.slow
def test_compiled_programs_take_parts_of_weights():
    """Inductor's own lowering of oneDNN's product takes nothing but constants."""
    weight, bias = weights()
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
