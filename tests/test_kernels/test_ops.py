"""Both ops as torch sees them: gradients, registration, and every way in which torch runs a program."""

import contextlib
import dataclasses
import functools
import itertools
import os
import shutil
import socket

import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint
from torch.utils.flop_counter import FlopCounterMode

from mmmsv.kernels import BACKENDS, scan2d, selective_scan, use_backend
from mmmsv.kernels.dispatch import Kernel

from .scan_inputs import (
    RUNNABLE,
    SLOW_WHERE_INTERPRETED,
    TOLERANCE,
    MapCase,
    assert_near,
    device_of,
    loss,
    run,
    run_map,
    scan_inputs,
)

needs_opcheck = pytest.mark.skipif(torch.__version__ < (2, 4), reason="torch.library.opcheck came with torch 2.4")
needs_dim = pytest.mark.skipif(torch.__version__ < (2, 2), reason="torch.export.Dim came with torch 2.2")
needs_half_on_cpus = pytest.mark.skipif(
    torch.__version__ < (2, 4), reason="autocast on CPUs took no float16 before torch 2.4"
)
FAST = [name for name in RUNNABLE if name != "triton"]  # which may be interpreted
EACH_BACKEND = [*FAST, *(pytest.param(name, marks=pytest.mark.slow) for name in RUNNABLE if name not in FAST)]
CARRIED = MapCase(
    size=(5, 4), state=2, routes=("row_rev", "col", "col_rev"), carry=True, merge=False, dtype=torch.float32
)
FOUR_SETS = MapCase(size=(3, 4), state=2, routes=("row", "col", "row_rev", "col_rev"), sets=4, dtype=torch.float32)


class Scan(nn.Module):
    """One carried scan2d with parameters of its own, of maps (batch, H, W, 6)."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.project = nn.Linear(6, 2 + 2 * 3)
        self.W_dt, self.b_dt = nn.Parameter(torch.randn(1, 6, 2)), nn.Parameter(torch.randn(1, 6))
        self.A_log, self.Dskip = nn.Parameter(torch.zeros(1, 6, 3)), nn.Parameter(torch.ones(1, 6))

    def forward(self, x):
        dt, B, C = self.project(x).unsqueeze(3).split((2, 3, 3), -1)
        return scan2d(x, dt, B, C, self.W_dt, self.b_dt, -self.A_log.exp(), self.Dskip, ("row", "col_rev"), carry=True)


@pytest.mark.parametrize(
    ("backend", "numbers", "length", "softplus"),
    [
        *itertools.product(FAST, [(1, 1), (16, 1), (1, 2), (16, 4), (2, 3)], [1, 7, 37], [True, False]),
        *(
            pytest.param("triton", *few, marks=pytest.mark.slow)
            for few in [((1, 2), 7, True), ((2, 3), 17, False)]
            if "triton" in RUNNABLE
        ),
    ],
)
def test_gradcheck(backend, numbers, length, softplus):
    state, groups = numbers
    inputs = scan_inputs(batch=1, dim=12 if groups == 4 else 6, length=length, state=state, groups=groups)
    if not softplus:  # the step as it is, without bias: positive, so that the state stays small
        inputs["delta"] = inputs["delta"].detach().abs()
    arguments = [v.detach().to(device_of(backend)).requires_grad_() for v in inputs.values()][: 7 if softplus else 6]
    with use_backend(backend):
        scan = functools.partial(selective_scan, delta_softplus=softplus)
        assert torch.autograd.gradcheck(scan, arguments, fast_mode=True)


@pytest.mark.parametrize("backend", SLOW_WHERE_INTERPRETED)
@pytest.mark.parametrize("case", [CARRIED, FOUR_SETS])
def test_gradcheck_of_maps(backend, case):
    inputs = dataclasses.replace(case, size=(2, 3), batch=1).inputs().values()
    arguments = [tensor.detach().double().to(device_of(backend)).requires_grad_() for tensor in inputs]
    with use_backend(backend):
        assert torch.autograd.gradcheck(functools.partial(scan2d, **case.options), arguments, fast_mode=True)


@pytest.mark.slow
@needs_opcheck
@pytest.mark.parametrize(("state", "groups"), [(1, 1), (3, 2)])
@pytest.mark.parametrize("optional", [True, False])
def test_opcheck_of_sequences(state, groups, optional):
    """One-row maps, one for each group of channels, with the step of each channel."""
    channels = 6 // groups
    u, delta = torch.randn(2, 2, 1, 9, groups, channels)
    B, C = torch.randn(2, 2, 1, 9, groups, state)
    bias, skip = torch.randn(2, groups, channels) if optional else (None, None)
    tensors = (u, delta, B, C, None, bias, -torch.rand(groups, channels, state), skip)
    options = ([0] * groups, False, False, True, 64, None)
    leaves = [None if tensor is None else tensor.clone().requires_grad_() for tensor in tensors]
    torch.library.opcheck(torch.ops.mmmsv.scan2d, (*leaves, *options))
    y, states = torch.ops.mmmsv.scan2d(*tensors, *options)
    torch.library.opcheck(torch.ops.mmmsv.scan2d_backward, (torch.randn_like(y), states, *tensors, *options))


@pytest.mark.slow
@needs_opcheck
@pytest.mark.parametrize(
    "case",
    [CARRIED, FOUR_SETS, dataclasses.replace(CARRIED, dtype=torch.bfloat16, y_dtype=torch.float32)],
    ids=["carried", "four_sets", "wide"],
)
def test_opcheck_of_maps(case):
    codes = {"row": 0, "col": 1, "row_rev": 2, "col_rev": 3}
    options = [codes[route] for route in case.routes], case.carry, case.merge, True, 64, case.y_dtype
    arguments = list(case.inputs().values())
    torch.library.opcheck(torch.ops.mmmsv.scan2d, (*arguments, *options))
    arguments = [tensor.detach() for tensor in arguments]
    y, states = torch.ops.mmmsv.scan2d(*arguments, *options)
    torch.library.opcheck(torch.ops.mmmsv.scan2d_backward, (torch.randn_like(y), states, *arguments, *options))


@pytest.mark.parametrize("backend", EACH_BACKEND)
@pytest.mark.parametrize("groups", [1, 3])
def test_results_are_as_the_compiler_expects(backend, groups, monkeypatch):
    """Shape, dtype and strides of y are those of ``new_results``, whichever way the inputs lie in memory."""
    made, forward = [], BACKENDS[backend].scan2d.forward

    def spy(scan):
        y, states = forward(scan)
        made.append((y, states, *scan.new_results()))
        return y, states

    kernel = dataclasses.replace(BACKENDS[backend].scan2d, forward=spy)
    monkeypatch.setitem(BACKENDS, backend, dataclasses.replace(BACKENDS[backend], scan2d=kernel))
    inputs = scan_inputs(length=9, state=2, groups=groups, dtype=torch.bfloat16)
    run(backend, inputs)
    run(backend, {name: tensor.detach().contiguous() for name, tensor in inputs.items()})
    for case in (CARRIED, FOUR_SETS, dataclasses.replace(FOUR_SETS, dtype=torch.float16, y_dtype=torch.float32)):
        run_map(backend, case.inputs(), case.options)
    for y, states, expected_y, expected_states in made:
        assert (y.shape, y.dtype, y.stride()) == (expected_y.shape, expected_y.dtype, expected_y.stride())
        assert (states.numel(), states.dtype) == (expected_states.numel(), expected_states.dtype)
    assert len(made) == 5


@pytest.mark.parametrize("backend", ["cpu", "torch"])
def test_traces(backend):
    """torch.jit.trace records a scan as the op, since no backend makes it of PyTorch's."""
    if backend not in RUNNABLE:
        pytest.skip(f"{backend} cannot run here")
    module, x = Scan(), torch.randn(2, 5, 7, 6)
    with use_backend(backend), torch.no_grad():
        traced = torch.jit.trace(module, x)
        torch.testing.assert_close(traced(x), module(x))
    assert "mmmsv::scan2d" in str(traced.graph)


def test_flops():
    inputs = scan_inputs(batch=3, dim=6, length=50, state=4, dtype=torch.float32)
    with FlopCounterMode(display=False) as counter:
        y = selective_scan(**inputs)
    assert counter.get_total_flops() == 3 * (9 * 50 * 6 * 4 + 50 * 6)
    with FlopCounterMode(display=False) as counter:
        y.sum().backward()
    assert counter.get_total_flops() == 3 * 50 * 6 * (23 * 4 + 8)


def test_flops_of_maps():
    pairs, state, rank = 2 * 5 * 4 * 6 * 3, 2, 2
    with FlopCounterMode(display=False) as counter:
        y = scan2d(**CARRIED.inputs(), **CARRIED.options)
    assert counter.get_total_flops() == pairs * (9 * state + 1 + 2 * rank)
    with FlopCounterMode(display=False) as counter:
        y.sum().backward()
    assert counter.get_total_flops() == pairs * (23 * state + 8 + 6 * rank)


@pytest.mark.parametrize("backend", RUNNABLE)
def test_a_second_derivative_is_refused(backend):
    inputs = {n: v.detach().to(device_of(backend)).requires_grad_() for n, v in scan_inputs(length=5).items()}
    with use_backend(backend):
        y = selective_scan(**inputs, delta_softplus=True)
        (du,) = torch.autograd.grad(y.square().sum(), inputs["u"], create_graph=True)
        with pytest.raises(NotImplementedError, match="mmmsv::scan2d has first derivatives only"):
            du.sum().backward()


def test_only_the_gradients_asked_for():
    inputs = {name: tensor.detach() for name, tensor in CARRIED.inputs().items()}
    inputs["A"].requires_grad_()
    scan2d(**inputs, **CARRIED.options).sum().backward()
    assert inputs["A"].grad.any()
    assert not scan2d(**{**inputs, "A": inputs["A"].detach()}, **CARRIED.options).requires_grad


@pytest.mark.parametrize("name", ["u", "A"])
def test_a_forward_mode_derivative_is_refused(name):
    inputs = {key: tensor.detach() for key, tensor in scan_inputs().items()}

    def scan(value):
        return selective_scan(**{**inputs, name: value})

    with pytest.raises(NotImplementedError, match=f"has no forward-mode derivative, and {name} carries a tangent"):
        torch.func.jvp(scan, (inputs[name],), (torch.ones_like(inputs[name]),))


def test_the_states_have_no_gradient():
    _, states = torch.ops.mmmsv.scan2d(*CARRIED.inputs().values(), [2, 1, 3], True, False, True, 64, None)
    assert not states.requires_grad


@pytest.mark.parametrize("asked", [False, True])
def test_states_are_kept_where_gradients_are_asked_for(asked):
    tensors = [tensor.requires_grad_(asked) for tensor in CARRIED.inputs().values()]
    sizes = []
    with _sizes_of_states(sizes):
        scan2d(*tensors, **CARRIED.options)
        with torch.no_grad():
            scan2d(*tensors, **CARRIED.options)
    assert [size > 0 for size in sizes] == [asked, False]


def test_a_program_without_gradients_is_asked_for_some():
    leaves = list(CARRIED.inputs().values())
    y, _ = torch.ops.mmmsv.scan2d(*leaves, [2, 1, 3], True, False, True, 0, None)
    with pytest.raises(RuntimeError, match="this program was recorded without gradients"):
        y.sum().backward()


@contextlib.contextmanager
def _sizes_of_states(sizes):
    """Add the number of states that each scan keeps."""
    backend = BACKENDS["torch"]

    def forward(scan):
        y, states = backend.scan2d.forward(scan)
        sizes.append(states.numel())
        return y, states

    watched = dataclasses.replace(backend, scan2d=Kernel(forward, backend.scan2d.backward))
    with pytest.MonkeyPatch.context() as patch, use_backend("torch"):
        patch.setitem(BACKENDS, "torch", watched)
        yield


def gradients_of(function, module, x):
    y = function(x)
    return y, torch.autograd.grad(loss(y), list(module.parameters()))


@pytest.mark.parametrize("dynamic", [False, True])
def test_compiles_without_graph_break(dynamic):
    module, x = Scan(), torch.randn(2, 5, 7, 6)
    compiled = torch.compile(module, fullgraph=True, backend="aot_eager", dynamic=dynamic)
    for size in (x, torch.randn(1, 4, 9, 6)):
        for ours, theirs in zip(gradients_of(compiled, module, size), gradients_of(module, module, size), strict=True):
            torch.testing.assert_close(ours, theirs)
    sequences = torch.compile(selective_scan, fullgraph=True, backend="aot_eager")
    inputs = scan_inputs(dtype=torch.float32)
    assert_near(sequences(**inputs), selective_scan(**inputs), 1e-6)


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("c++") is None, reason="inductor needs a C++ compiler")
def test_compiles_with_inductor():
    module, x = Scan(), torch.randn(2, 5, 7, 6)
    compiled = torch.compile(module, fullgraph=True)
    for ours, theirs in zip(gradients_of(compiled, module, x), gradients_of(module, module, x), strict=True):
        torch.testing.assert_close(ours, theirs)


@needs_dim
def test_exports():
    module, x = Scan(), torch.randn(2, 5, 7, 6)
    sides = {1: torch.export.Dim("height", min=2, max=64), 2: torch.export.Dim("width", min=2, max=64)}
    exported = torch.export.export(module, (x,), dynamic_shapes=(sides,))
    assert any("mmmsv.scan2d" in str(node.target) for node in exported.graph.nodes)
    other = torch.randn(2, 8, 3, 6)
    torch.testing.assert_close(exported.module()(other), module(other))


def test_activation_checkpointing():
    module, x = Scan(), torch.randn(2, 5, 7, 6)
    ours = gradients_of(functools.partial(checkpoint, module, use_reentrant=False), module, x)
    for one, other in zip(ours, gradients_of(module, module, x), strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=0)


@pytest.mark.parametrize("function", ["selective_scan", "scan2d"])
def test_vmap(function):
    """Of all tensors, and of some while the samples share the others."""
    if function == "scan2d":
        inputs, scan = CARRIED.inputs(), functools.partial(scan2d, **CARRIED.options)
    else:
        inputs, scan = scan_inputs(), selective_scan
    tensors = [tensor.detach() for tensor in inputs.values()]
    if torch.__version__ < "2.5":
        with pytest.raises(NotImplementedError, match=r"mmmsv::scan2d works under .*vmap from torch 2.5 on"):
            torch.func.vmap(scan)(*(tensor.unsqueeze(0) for tensor in tensors))
        return
    for batched in (range(len(tensors)), [0], [3, 4]):
        dims = [1 if i in batched else None for i in range(len(tensors))]
        samples = [
            [tensor * (sample + 1) if i in batched else tensor for i, tensor in enumerate(tensors)]
            for sample in range(2)
        ]
        together = [
            tensor if dim is None else torch.stack(each, dim)
            for tensor, dim, each in zip(tensors, dims, zip(*samples, strict=True), strict=True)
        ]
        for ours, sample in zip(torch.func.vmap(scan, tuple(dims))(*together), samples, strict=True):
            torch.testing.assert_close(ours, scan(*sample), rtol=0, atol=0)


@pytest.mark.parametrize("kind", [torch.bfloat16, pytest.param(torch.float16, marks=needs_half_on_cpus)])
def test_autocast(kind):
    """What autocast leaves in two dtypes is computed in the wider one; what is all narrow stays so."""
    module, x = Scan(), torch.randn(2, 5, 7, 6)
    exact = module(x)
    with torch.autocast("cpu", kind):
        mixed = module(x)  # x in float32, dt, B and C narrow
        narrow = module(x.to(kind))
    assert mixed.dtype == torch.float32
    assert narrow.dtype == kind
    for y in (mixed, narrow):
        assert_near(y, exact, 3e-2)
    inputs = CARRIED.inputs()
    with pytest.raises(TypeError, match=r"dt is torch.float32 and x is torch.bfloat16; cast one"):
        scan2d(**{**inputs, "x": inputs["x"].bfloat16()}, **CARRIED.options)


def _train_one_of_two(rank, port, path):
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
    torch.distributed.init_process_group("gloo", rank=rank, world_size=2)
    x = torch.randn(4, 5, 7, 6, generator=torch.Generator().manual_seed(1))
    module = nn.parallel.DistributedDataParallel(Scan())
    module(x[2 * rank : 2 * rank + 2]).square().mean().backward()
    if rank == 0:
        torch.save({name: p.grad for name, p in module.module.named_parameters()}, path)
    torch.distributed.destroy_process_group()


@pytest.mark.slow
def test_data_parallel(tmp_path):
    """Two processes with half a batch each have the gradients of one with all of it."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    torch.multiprocessing.spawn(_train_one_of_two, (port, tmp_path / "gradients.pt"), nprocs=2)
    module = Scan()
    module(torch.randn(4, 5, 7, 6, generator=torch.Generator().manual_seed(1))).square().mean().backward()
    ours = torch.load(tmp_path / "gradients.pt", weights_only=True)
    for name, parameter in module.named_parameters():
        torch.testing.assert_close(ours[name], parameter.grad, msg=lambda text, name=name: f"{name}: {text}")


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_gpu_equals_cpu(dtype):
    inputs = {n: v.detach() for n, v in scan_inputs(length=700, state=2, groups=2, dtype=dtype).items()}
    on_gpu = {name: tensor.cuda().requires_grad_() for name, tensor in inputs.items()}
    y = selective_scan(**on_gpu, delta_softplus=True)
    ours = (y, *torch.autograd.grad(loss(y), list(on_gpu.values())))
    for one, other in zip(ours, run("torch", inputs), strict=True):
        assert_near(one.cpu(), other, TOLERANCE[dtype])
    case = CARRIED.inputs()
    on_gpu = {name: tensor.detach().cuda() for name, tensor in case.items()}
    assert_near(scan2d(**on_gpu, **CARRIED.options).cpu(), run_map("torch", case, CARRIED.options)[0], 2e-5)
