"""Where more than the result of blocks is asked for, their layers are called one by one, with the results of before."""

import pytest
import torch
from torch.autograd import forward_ad
from torch.fx.experimental.proxy_tensor import make_fx
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

from mmmsv.kernels import use_backend

from ..test_kernels.fused_inputs import needs_library
from .one_call import assert_same_outcome, model_of

pytestmark = needs_library


class Marked(torch.Tensor):
    pass


class EveryOp(TorchDispatchMode):
    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        return function(*args, **(kwargs or {}))


def with_gradients(stage, x):
    with torch.enable_grad():
        y = stage(x)
        return y, *torch.autograd.grad(y.square().sum(), list(stage.parameters()))


def with_gradients_of_x(stage, x):
    with torch.enable_grad():
        x = x.clone().requires_grad_()
        y = stage.requires_grad_(False)(x)
        return y, *torch.autograd.grad(y.square().sum(), x)


def by_another_backend(stage, x):
    with use_backend("torch"):
        return stage(x)


def with_counted_flops(stage, x):
    with FlopCounterMode(display=False) as counter:
        y = stage(x)
    return y, torch.tensor(float(counter.get_total_flops()))


def under_a_mode(stage, x):
    with EveryOp():
        return stage(x)


def traced(stage, x):
    return torch.jit.trace(stage, x, check_trace=False)(x)


def made_a_program(stage, x):
    return make_fx(stage)(x)(x)


def made_a_program_early(stage, x):
    return make_fx(stage, pre_dispatch=True)(x)(x)


def traced_by_names(stage, x):
    return torch.fx.symbolic_trace(stage)(x)


def compiled_for_eager(stage, x):
    torch.compiler.reset()
    return torch.compile(stage, backend="eager", fullgraph=True)(x)


def exported(stage, x):
    return torch.export.export(stage, (x,)).module()(x)


def mapped_over_images(stage, x):
    return torch.func.vmap(stage)(x[:, None])


def mapped_over_weights(stage, x):
    weights = {name: torch.stack((weight, weight)) for name, weight in stage.named_parameters()}
    return torch.func.vmap(lambda one: torch.func.functional_call(stage, one, x))(weights)


def with_a_tangent(stage, x):
    return torch.func.jvp(stage, (x,), (x,))[1]


def with_dual_numbers(stage, x):
    with forward_ad.dual_level():
        return stage(forward_ad.make_dual(x, x))


def differentiated(stage, x):
    return torch.func.grad(lambda x: stage(x).square().sum())(x)


def in_float64(stage, x):
    return stage.double()(x.double())


def in_float16(stage, x):
    return stage.half()(x.half())


def in_a_subclass(stage, x):
    return stage(x.as_subclass(Marked)).as_subclass(torch.Tensor)


def without_memory(stage, x):
    return torch.zeros(stage.to("meta")(x.to("meta")).shape)


WAYS = [
    *(with_gradients, with_gradients_of_x, by_another_backend, with_counted_flops, under_a_mode, traced_by_names),
    *(mapped_over_images, mapped_over_weights, with_a_tangent, with_dual_numbers, differentiated),
    *(in_float64, in_float16, in_a_subclass, without_memory),
]
PROGRAMS = [traced, made_a_program, compiled_for_eager, exported]
if torch.__version__ >= (2, 2):  # before, nothing tells of such a trace
    PROGRAMS.append(made_a_program_early)


@pytest.mark.parametrize("way", [*WAYS, *(pytest.param(program, marks=pytest.mark.slow) for program in PROGRAMS)])
@pytest.mark.parametrize("name", ["nano", "vmamba_v2"])
@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning")
def test_more_than_the_result(taken, downsampled, name, way):
    """The same numbers, or the same error."""
    x = torch.randn(2, 5, 6, 16)
    with torch.no_grad():
        assert_same_outcome(lambda: way(model_of(name).stages[1], x))
    assert not taken
    assert not downsampled


def test_profilers_see_the_calls(taken, downsampled):
    with torch.no_grad(), torch.profiler.profile() as profiler:
        model_of("nano")(torch.randn(1, 3, 32, 40))
    counts = {event.key: event.count for event in profiler.key_averages()}
    assert counts["mmmsv::blocks"] == len(taken) == 2
    assert counts["mmmsv::downsampling"] == len(downsampled) == 1
