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
    run_with_last_state,
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
    dim = 12 if groups == 4 else 6
    inputs = scan_inputs(batch=1, dim=dim, length=length, state=state, groups=groups, all_of_them=True)
    if not softplus:  # the step as it is, without bias: positive, so that the state stays small
        inputs["delta"] = inputs["delta"].detach().abs()
        del inputs["delta_bias"]
    arguments = [tensor.detach().to(device_of(backend)).requires_grad_() for tensor in inputs.values()]

    def scan(*tensors):
        by_name = dict(zip(inputs, tensors, strict=True))
        return selective_scan(**by_name, delta_softplus=softplus, return_last_state=True)

    with use_backend(backend):
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
@pytest.mark.parametrize("contiguous", [True, False])
def test_opcheck_of_sequences(state, groups, optional, contiguous):
    u, delta, z = torch.randn(3, 2, 6, 9).transpose(2, 3)
    if not contiguous:
        u, delta, z = (tensor.contiguous() for tensor in (u, delta, z))
    B, C = torch.randn(2, 2, 9, groups, state)
    bias, skip = torch.randn(2, 6)
    h0, A = torch.randn(2, state, 6), -torch.rand(6, state)
    optionals = (skip, bias, h0) if optional else (None, None, None)
    tensors = (u, delta, B, C, z if optional else None, A, *optionals)
    leaves = [None if tensor is None else tensor.clone().requires_grad_() for tensor in tensors]
    torch.library.opcheck(torch.ops.mmmsv.selective_scan, (*leaves, True, 64))
    y, last, states = torch.ops.mmmsv.selective_scan(*tensors, True, 64)
    for dlast in (torch.randn_like(last), None):
        given = (torch.randn_like(y), dlast, states, *tensors, True, 64)
        torch.library.opcheck(torch.ops.mmmsv.selective_scan_backward, given)


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
    made = []

    def spied(forward):
        def spy(scan):
            results = forward(scan)
            made.append((results, scan.new_results()))
            return results

        return spy

    ops = {"selective_scan": BACKENDS[backend].selective_scan, "scan2d": BACKENDS[backend].scan2d}
    kernels = {name: dataclasses.replace(kernel, forward=spied(kernel.forward)) for name, kernel in ops.items()}
    monkeypatch.setitem(BACKENDS, backend, dataclasses.replace(BACKENDS[backend], **kernels))
    inputs = scan_inputs(length=9, state=2, groups=groups, dtype=torch.bfloat16, all_of_them=True)
    run_with_last_state(backend, inputs)
    run_with_last_state(backend, {name: tensor.detach().contiguous() for name, tensor in inputs.items()})
    for case in (CARRIED, FOUR_SETS, dataclasses.replace(FOUR_SETS, dtype=torch.float16, y_dtype=torch.float32)):
        run_map(backend, case.inputs(), case.options)
    for (*results, states), (*expected, expected_states) in made:
        for one, other in zip(results, expected, strict=True):
            assert (one.shape, one.dtype, one.stride()) == (other.shape, other.dtype, other.stride())
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


def test_flops_of_sequences_with_all_arguments():
    """z and both states cost nothing that is counted."""
    inputs = scan_inputs(batch=3, dim=6, length=50, state=4, dtype=torch.float32, all_of_them=True)
    with FlopCounterMode(display=False) as counter:
        y, last = selective_scan(**inputs, return_last_state=True)
        assert counter.get_total_flops() == 3 * (9 * 50 * 6 * 4 + 50 * 6)
        (y.sum() + last.sum()).backward()
    assert counter.get_total_flops() == 3 * (9 * 50 * 6 * 4 + 50 * 6) + 3 * 50 * 6 * (23 * 4 + 8)


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
        with pytest.raises(NotImplementedError, match="mmmsv::selective_scan has first derivatives only"):
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

    def sequences(**tensors):
        return selective_scan(**tensors, return_last_state=True, delta_softplus=True)

    compiled = torch.compile(sequences, fullgraph=True, backend="aot_eager", dynamic=dynamic)
    for length, state, groups, contiguous in ((37, 1, 1, False), (20, 2, 2, True), (21, 2, 1, True)):
        inputs = scan_inputs(length=length, state=state, groups=groups, dtype=torch.float32, all_of_them=True)
        if contiguous:
            inputs = {name: tensor.detach().contiguous().requires_grad_() for name, tensor in inputs.items()}
        if length == 21:
            inputs["C"] = inputs["A"].detach().clone().requires_grad_()
        results = [each(**inputs) for each in (compiled, sequences)]
        gradients = [torch.autograd.grad(loss(y) + loss(h), list(inputs.values())) for y, h in results]
        for ours, theirs in zip((*results[0], *gradients[0]), (*results[1], *gradients[1]), strict=True):
            assert_near(ours, theirs, 1e-6)


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


class Sequences(nn.Module):
    """selective_scan with weights of its own, of sequences (batch, 6, L)."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.A, self.D, self.bias = (nn.Parameter(tensor) for tensor in (-torch.rand(6, 2), *torch.randn(2, 6)))

    def forward(self, u, delta, B, C, z, h0):
        return selective_scan(u, delta, self.A, B, C, self.D, z, self.bias, True, True, h0)


@needs_dim
@pytest.mark.parametrize("contiguous", [False, True])
@pytest.mark.parametrize("B", ["tokens", "channels"])
@pytest.mark.parametrize("groups", [1, 2])
def test_exports_sequences(groups, B, contiguous):
    module = Sequences()

    def arguments(batch, length):
        inputs = scan_inputs(batch, length=length, state=2, groups=groups, dtype=torch.float32, all_of_them=True)
        if B == "channels":
            inputs["B"] = inputs["A"]
        given = tuple(inputs[name].detach() for name in ("u", "delta", "B", "C", "z", "h0"))
        return tuple(each.contiguous() for each in given) if contiguous else given

    batch, length = torch.export.Dim("batch", min=2, max=64), torch.export.Dim("length", min=2, max=4096)
    of_tokens, of_states = {0: batch, 2: length}, {0: batch, 3: length}
    shapes = (of_tokens, of_tokens, of_states if B == "tokens" else {}, of_states, of_tokens, {0: batch})
    exported = torch.export.export(module, arguments(2, 20), dynamic_shapes=shapes)
    assert any("mmmsv.selective_scan" in str(node.target) for node in exported.graph.nodes)
    for ours, theirs in zip(exported.module()(*arguments(3, 131)), module(*arguments(3, 131)), strict=True):
        torch.testing.assert_close(ours, theirs)


def test_activation_checkpointing():
    module, x = Scan(), torch.randn(2, 5, 7, 6)
    ours = gradients_of(functools.partial(checkpoint, module, use_reentrant=False), module, x)
    for one, other in zip(ours, gradients_of(module, module, x), strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=0)


@pytest.mark.parametrize("function", ["selective_scan", "selective_scan with B of channels", "scan2d"])
def test_vmap(function):
    """Of all tensors, and of some while the samples share the others."""
    if function == "scan2d":
        inputs, scan = CARRIED.inputs(), functools.partial(scan2d, **CARRIED.options)
    else:
        inputs = scan_inputs(groups=3, all_of_them=True)
        if function != "selective_scan":
            inputs["B"] = inputs["A"]
            function = "selective_scan"

        def scan(*tensors):
            return torch.cat(
                [
                    y.flatten(1)
                    for y in selective_scan(**dict(zip(inputs, tensors, strict=True)), return_last_state=True)
                ],
                1,
            )

    tensors = [tensor.detach() for tensor in inputs.values()]
    if torch.__version__ < "2.5":
        with pytest.raises(NotImplementedError, match=rf"mmmsv::{function} works under .*vmap from torch 2.5 on"):
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


@pytest.mark.parametrize("kind", [torch.bfloat16, pytest.param(torch.float16, marks=needs_half_on_cpus)])
def test_autocast_of_sequences(kind):
    inputs = scan_inputs(state=2, dtype=torch.float32, all_of_them=True)
    scan = functools.partial(selective_scan, delta_softplus=True, return_last_state=True)
    exact = scan(**inputs)
    narrow = {name: inputs[name].to(kind) for name in ("delta", "B", "C", "z")}
    with torch.autocast("cpu", kind):
        mixed = scan(**{**inputs, **narrow})
        all_narrow = scan(**{**inputs, **narrow, "u": inputs["u"].to(kind)})
    assert [y.dtype for y in (*mixed, *all_narrow)] == [torch.float32, torch.float32, kind, torch.float32]
    for ours in (mixed, all_narrow):
        for one, other in zip(ours, exact, strict=True):
            assert_near(one, other, 3e-2)
    with pytest.raises(TypeError, match=r"z is torch.* and u is torch.float32; cast one"):
        selective_scan(**{**inputs, "z": narrow["z"]})


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
