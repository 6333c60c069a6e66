"""What is imported by the names of compiled scans, used as VMamba, Vim and mamba-ssm use the real ones."""

import dataclasses
import importlib
import importlib.util
import logging
import pickle
import sys
from pathlib import Path

import pytest
import torch
from torch.nn import functional as F

from mmmsv.kernels import BACKENDS, stand_in, use_backend
from mmmsv.kernels.dispatch import Kernel
from mmmsv.kernels.stand_ins import finder, is_asked_for, log

from . import mamba_oracle
from .scan_inputs import INTERPRETED, RUNNABLE, TOLERANCE, assert_near, device_of, loss

NAMES = list(finder.NAMES)
INSTALLED = [name for name in NAMES if importlib.util.find_spec(name) is not None]
PACKAGES = Path(finder.__file__).parent / "packages"
pytestmark = pytest.mark.skipif(bool(INSTALLED), reason=f"installed: {', '.join(INSTALLED)}")


def forget():
    """Undo what has been imported by the names, and the finder."""
    sys.meta_path[:] = [each for each in sys.meta_path if not isinstance(each, finder.StandInFinder)]
    for name in list(sys.modules):
        if name.partition(".")[0] in finder.NAMES:
            del sys.modules[name]


@pytest.fixture
def stood_in():
    stand_in()
    yield importlib.import_module
    forget()


class _Calls(torch.autograd.Function):
    """Forward and backward as autograd functions around a compiled scan have them: x is kept from one to the other."""

    @staticmethod
    def forward(ctx, fwd, bwd, options, u, delta, A, B, C, D, z, delta_bias):
        gate = () if z is None else (z,)
        out, x, *rest = fwd(u, delta, A, B, C, D, *gate, delta_bias, True, *options)
        assert not out.requires_grad
        ctx.bwd, ctx.gate = bwd, gate
        ctx.save_for_backward(u, delta, A, B, C, D, delta_bias, x, out)
        last = x[:, :, -1, 1::2].clone()
        ctx.mark_non_differentiable(last)
        return (rest[0] if rest else out), last

    @staticmethod
    def backward(ctx, dout, _):
        u, delta, A, B, C, D, delta_bias, x, out = ctx.saved_tensors
        du, ddelta, dA, dB, dC, dD, dbias, *rest = ctx.bwd(u, delta, A, B, C, D, *ctx.gate, delta_bias, dout, x, out)
        return None, None, None, du, ddelta, dA, dB, dC, dD, (rest[0] if rest else None), dbias


# The calls of each, and the options of fwd behind delta_softplus; bwd gets what the real one gets of x and out.
def of_mamba(cuda):
    def fwd(u, delta, A, B, C, D, *gate_and_bias):
        *gate, delta_bias, softplus = gate_and_bias
        return cuda.fwd(u, delta, A, B, C, D, gate[0] if gate else None, delta_bias, softplus)

    def bwd(u, delta, A, B, C, D, *others):
        *gate, delta_bias, dout, x, out = others
        z = gate[0] if gate else None
        return cuda.bwd(u, delta, A, B, C, D, z, delta_bias, dout, x, out if gate else None, None, True, False)

    return fwd, bwd, ()


def of_vmamba(cuda, *options):
    def bwd(u, delta, A, B, C, D, delta_bias, dout, x, out):
        return cuda.bwd(u, delta, A, B, C, D, delta_bias, dout, x, True, 1)

    return cuda.fwd, bwd, (1, *options)


CALLS = {
    "selective_scan_cuda": of_mamba,
    "selective_scan_cuda_core": of_vmamba,
    "selective_scan_cuda_nrow": of_vmamba,
    "selective_scan_cuda_oflex": lambda cuda: of_vmamba(cuda, True),
    "selective_scan_cuda_ndstate": of_vmamba,
}
ORDER = ("u", "delta", "A", "B", "C", "D", "z", "delta_bias")


def check_calls(calls, given, dtype=torch.float64, y_dtype=None):
    y, last = _Calls.apply(*calls, *(given.get(name) for name in ORDER))
    assert y.dtype == (y_dtype or dtype)
    assert y.is_contiguous()
    exact = mamba_oracle.doubled(given)
    theirs, of_last = mamba_oracle.scan(**exact, delta_softplus=True)
    tolerance = TOLERANCE[y.dtype]
    assert_near(y, theirs, tolerance)
    assert_near(last, of_last, min(tolerance, 2e-5))
    gradients = torch.autograd.grad(loss(y), list(given.values()))
    for name, mine, other in zip(
        given, gradients, torch.autograd.grad(loss(theirs), list(exact.values())), strict=True
    ):
        assert (mine.dtype, mine.shape) == (given[name].dtype, given[name].shape)
        assert_near(mine, other, TOLERANCE[mine.dtype], name)


def of_sizes(dtype=torch.float64, leave=(), **sizes):
    """Arguments whose last chunk of 64 tokens is not full."""
    given = mamba_oracle.inputs(dtype, **{"length": 150, "state": 3, "groups": 2, **sizes})
    return {name: tensor for name, tensor in given.items() if name not in leave}


@pytest.mark.parametrize("name", [name for name in CALLS if name != "selective_scan_cuda_ndstate"])
@pytest.mark.parametrize("leave", [(), ("D", "delta_bias")], ids=["all", "few"])
def test_autograd_function_around_a_stand_in(stood_in, name, leave):
    check_calls(CALLS[name](stood_in(name)), of_sizes(leave=("z", *leave)))


@pytest.mark.parametrize("backend", [name for name in RUNNABLE if name not in INTERPRETED])
def test_the_backward_pass_of_each_backend_begins_at_the_states_in_x(stood_in, backend):
    given = {name: tensor.detach().to(device_of(backend)) for name, tensor in of_sizes(leave=("z",)).items()}
    with use_backend(backend):
        check_calls(
            CALLS["selective_scan_cuda_core"](stood_in("selective_scan_cuda_core")),
            {name: tensor.requires_grad_() for name, tensor in given.items()},
        )


def test_x_has_the_states_that_the_op_keeps(stood_in, monkeypatch):
    """The same bits: nothing is computed again, and kernels that begin at each of them have what they need."""
    torch_backend, kept = BACKENDS["torch"], []

    def forward(given):
        *results, states = torch_backend.selective_scan.forward(given)
        kept.append(states.flatten())
        return *results, states

    def backward(given, dy, dlast, states):
        kept.append(states)
        return torch_backend.selective_scan.backward(given, dy, dlast, states)

    watched = dataclasses.replace(torch_backend, selective_scan=Kernel(forward, backward))
    monkeypatch.setitem(BACKENDS, "torch", watched)
    with use_backend("torch"):
        check_calls(CALLS["selective_scan_cuda_core"](stood_in("selective_scan_cuda_core")), of_sizes(leave=("z",)))
    assert len(kept) == 2
    assert torch.equal(*kept)
    assert kept[0].any()


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("name", [name for name in CALLS if name != "selective_scan_cuda_ndstate"])
def test_autograd_function_on_a_gpu(stood_in, name):
    """Chunks have another length there."""
    given = {each: tensor.detach().cuda().requires_grad_() for each, tensor in of_sizes(leave=("z",)).items()}
    check_calls(CALLS[name](stood_in(name)), given)


@pytest.mark.parametrize("batch", [0, 2])
@pytest.mark.parametrize("length", [1, 64, 65])
def test_lengths(stood_in, batch, length):
    given = of_sizes(leave=("z",), batch=batch, length=length)
    check_calls(CALLS["selective_scan_cuda_core"](stood_in("selective_scan_cuda_core")), given)


def test_states_of_one_number_have_no_axis(stood_in):
    fwd, bwd, options = CALLS["selective_scan_cuda_ndstate"](stood_in("selective_scan_cuda_ndstate"))

    def squeezed(A, B, C):
        return A[:, 0], B[:, :, 0], C[:, :, 0]

    def of_ndstate(u, delta, A, B, C, *others):
        return fwd(u, delta, *squeezed(A, B, C), *others)

    def back(u, delta, A, B, C, *others):
        du, ddelta, dA, dB, dC, *rest = bwd(u, delta, *squeezed(A, B, C), *others)
        return du, ddelta, dA[:, None], dB[:, :, None], dC[:, :, None], *rest

    check_calls((of_ndstate, back, options), of_sizes(leave=("z",), state=1))
    with pytest.raises(ValueError, match=r"^fwd: shapes are A \(6, 1\), .*expected A \(D,\), B and C \(batch, G, L\)"):
        fwd(*(of_sizes(state=1)[name] for name in ("u", "delta", "A", "B", "C")), None, None, True, 1)


@pytest.mark.parametrize("constant", ["", "B", "C", "BC"])
def test_gate_and_projections_of_channels(stood_in, constant):
    given = of_sizes()
    for name in constant:
        given[name] = given["A"].detach().roll(1, 0).requires_grad_()
    check_calls(CALLS["selective_scan_cuda"](stood_in("selective_scan_cuda")), given)


def test_projections_without_groups(stood_in):
    given = of_sizes(groups=1)
    given = {**given, **{name: given[name].detach()[:, 0].requires_grad_() for name in ("B", "C")}}
    check_calls(CALLS["selective_scan_cuda"](stood_in("selective_scan_cuda")), given)


def test_gradient_of_the_gate_is_written_where_asked(stood_in):
    """As mamba-ssm's block asks: into a part of a tensor, and with the result once more."""
    cuda, given = stood_in("selective_scan_cuda"), {name: t.detach() for name, t in of_sizes().items()}
    scan = [given[name] for name in ORDER]
    out, x, out_z = cuda.fwd(*scan, True)
    dxz = torch.zeros(2, 12, 150, dtype=torch.float64)
    results = cuda.bwd(*scan, torch.ones_like(out), x, out, dxz.chunk(2, 1)[1], True, True)
    assert results[7].data_ptr() == dxz[:, 6:].data_ptr()
    assert_near(results[8], out_z, 1e-14)
    z = given["z"].requires_grad_()
    assert_near(dxz[:, 6:], torch.autograd.grad((out * F.silu(z)).sum(), z)[0], 1e-14)
    assert not dxz[:, :6].any()


@pytest.mark.parametrize("out_float", [False, True])
def test_result_in_float32_is_not_rounded(stood_in, out_float):
    cuda, given = stood_in("selective_scan_cuda_oflex"), of_sizes(torch.bfloat16, leave=("z",))
    check_calls(of_vmamba(cuda, out_float), given, torch.bfloat16, torch.float32 if out_float else None)


def test_backward_needs_what_forward_has_returned(stood_in):
    cuda, given = stood_in("selective_scan_cuda"), of_sizes()
    scan = [given[name] for name in ORDER]
    out, x, _ = cuda.fwd(*scan, True)
    for wrong, error, message in (
        ({"x": None}, TypeError, "bwd: x is a NoneType, expected the second result of fwd"),
        (
            {"x": x[:, :, :1]},
            ValueError,
            r"bwd: x has shape \(2, 6, 1, 6\), expected \(2, 6, 3, 6\) for u \(2, 6, 150\)",
        ),
        ({"out": None}, TypeError, "bwd: out is None, expected the first result of fwd, since z is given"),
        ({"dout": out[:, :, 1:]}, ValueError, r"bwd: dout has shape \(2, 6, 149\), expected \(2, 6, 150\)"),
    ):
        results = {"dout": out, "x": x, "out": out, **wrong}
        with pytest.raises(error, match=message):
            cuda.bwd(*scan, *results.values(), None, True, False)


def convolution_inputs():
    generator = torch.Generator().manual_seed(0)
    shapes = {
        "x": (2, 6, 9),
        "weight": (6, 4),
        "bias": (6,),
        "initial": (2, 6, 3),
        "dout": (2, 6, 9),
        "dlast": (2, 6, 3),
    }
    return {name: torch.randn(shape, generator=generator, dtype=torch.float64) for name, shape in shapes.items()}


def test_convolution_of_each_release(stood_in):
    """The calls of causal-conv1d 1.0, 1.1 (Vim), 1.2, and 1.5, which writes into what it is given."""
    cuda, given = stood_in("causal_conv1d_cuda"), convolution_inputs()
    x, weight, bias, initial, dout, dlast = given.values()
    leaves = [tensor.clone().requires_grad_() for tensor in (x, weight, bias, initial)]
    plain = F.silu(mamba_oracle.convolution(*leaves[:3]))
    begun = F.silu(mamba_oracle.convolution(*leaves))
    last = torch.cat((leaves[3], leaves[0]), 2)[:, :, -3:]
    of_plain = torch.autograd.grad(plain, leaves[:3], dout)
    of_begun = torch.autograd.grad((begun, last), leaves, (dout, dlast))

    final, out, y = (torch.empty_like(of) for of in (initial, x, x))
    assert_near(cuda.causal_conv1d_fwd(x, weight, bias, True), plain, 1e-12)
    assert_near(cuda.causal_conv1d_fwd(x, weight, bias, None, True), plain, 1e-12)
    assert_near(cuda.causal_conv1d_fwd(x, weight, bias, None, initial, final, True), begun, 1e-12)
    assert torch.equal(final, last)
    assert cuda.causal_conv1d_fwd(x, weight, bias, None, initial, y, None, True) is None
    assert_near(y, begun, 1e-12)

    dx = torch.empty_like(x)
    gradients = [
        (cuda.causal_conv1d_bwd(x, weight, bias, dout, None, True), of_plain),
        (cuda.causal_conv1d_bwd(x, weight, bias, dout, None, dx, True), of_plain),
        (cuda.causal_conv1d_bwd(x, weight, bias, dout, None, initial, dlast, None, True, True), of_begun),
    ]
    assert gradients[1][0][0] is dx
    outs = [torch.zeros_like(leaf) for leaf in leaves]
    assert cuda.causal_conv1d_bwd(x, weight, bias, dout, None, initial, dlast, *outs, True) is None
    for mine, theirs in (*gradients, (outs, of_begun)):
        for one, other in zip(mine, theirs, strict=True):
            assert_near(one, other, 1e-12)
    functions = stood_in("causal_conv1d.cpp_functions")
    assert_near(functions.causal_conv1d_fwd_function(x, weight, bias, None, None, None, True), plain, 1e-12)

    token = x[:, :, :1]
    states = [initial.clone() for _ in range(3)]
    updated = [cuda.causal_conv1d_update(token, states[0], weight, bias, True)]
    updated.append(cuda.causal_conv1d_update(token, states[1], weight, bias, True, None, None))
    assert cuda.causal_conv1d_update(token, states[2], weight, bias, out[:, :, :1], True, None, None) is None
    for y, state in zip((*updated, out[:, :, :1]), states, strict=True):
        assert_near(y, begun[:, :, :1], 1e-12)
        assert torch.equal(state, torch.cat((initial[:, :, 1:], token), 2))


def test_unknown_calls_of_the_convolution(stood_in):
    cuda, x = stood_in("causal_conv1d_cuda"), torch.ones(2, 6, 9)
    for function, given, known in (
        ("fwd", 6, "4, 5, 7 or 8"),
        ("bwd", 9, "6, 7, 10 or 12"),
        ("update", 6, "5, 7 or 8"),
    ):
        with pytest.raises(
            TypeError, match=rf"causal_conv1d_{function}: {given} arguments .* its releases take {known}"
        ):
            getattr(cuda, f"causal_conv1d_{function}")(*[x] * given)
    with pytest.raises(NotImplementedError, match="causal_conv1d_fwd: seq_idx is given"):
        cuda.causal_conv1d_fwd(x, x[0, :, :4], None, torch.zeros(2, 9), True)


def test_nothing_is_stood_in_for_unasked():
    for name in NAMES:
        with pytest.raises(ModuleNotFoundError, match=f"No module named '{name}'"):
            importlib.import_module(name)


def test_a_stand_in_is_found_without_being_imported(stood_in):
    stand_in()  # again
    assert sum(isinstance(each, finder.StandInFinder) for each in sys.meta_path) == 1
    assert isinstance(sys.meta_path[-1], finder.StandInFinder)
    for name in NAMES:
        assert importlib.util.find_spec(name).origin.startswith(str(PACKAGES))
        assert name not in sys.modules


def test_interfaces_of_mamba_ssm_and_causal_conv1d(stood_in):
    """Modules below are attributes, as where the real package is imported; versions are lower than any of theirs."""
    package, convolution = stood_in("mamba_ssm"), stood_in("causal_conv1d")
    from mmmsv.kernels import mamba

    for module, names in (
        (package, ("selective_scan_fn", "mamba_inner_fn", "selective_state_update")),
        (
            package.ops.selective_scan_interface,
            ("selective_scan_ref", "bimamba_inner_fn", "mamba_inner_fn_no_out_proj"),
        ),
        (package.ops.triton.selective_state_update, ("selective_state_update",)),
        (convolution, ("causal_conv1d_fn", "causal_conv1d_update")),
    ):
        for name in names:
            assert getattr(module, name) is getattr(mamba, name)
    assert package.__version__ == convolution.__version__ == "0+mmmsv"
    assert pickle.loads(pickle.dumps(package.selective_scan_fn)) is mamba.selective_scan_fn
    assert not hasattr(package, "other")
    with pytest.raises(
        ImportError, match="stands in for the functions of mamba_ssm, and has no Mamba; install mamba-ssm"
    ):
        from mamba_ssm import Mamba  # noqa: F401
    with pytest.raises(ModuleNotFoundError, match=r"mamba_ssm\.modules"):
        stood_in("mamba_ssm.modules.mamba_simple")


def test_the_log_says_once_what_stands_in(stood_in, caplog, monkeypatch):
    monkeypatch.setattr(log, "_logged", set())
    with caplog.at_level(logging.WARNING, "mmmsv.kernels"):
        for name in NAMES:
            importlib.reload(stood_in(name))
    said = [record.getMessage() for record in caplog.records]
    assert sorted(line.partition(" is not installed: mmmsv.kernels")[0] for line in said) == NAMES


def test_a_real_package_wins(stood_in, tmp_path, monkeypatch):
    """Where mamba-ssm is installed without its kernel, the kernel alone is stood in for."""
    (tmp_path / "mamba_ssm").mkdir()
    (tmp_path / "mamba_ssm/__init__.py").write_text("import selective_scan_cuda as kernel\n")
    monkeypatch.syspath_prepend(tmp_path)
    package = stood_in("mamba_ssm")
    assert package.__file__ == str(tmp_path / "mamba_ssm/__init__.py")
    assert package.kernel.__file__ == str(PACKAGES / "selective_scan_cuda.py")
    with pytest.raises(ModuleNotFoundError):
        stood_in("mamba_ssm.ops")


def test_what_was_blocked_stays_blocked(stood_in, monkeypatch):
    monkeypatch.setitem(sys.modules, "selective_scan_cuda", None)
    with pytest.raises(ModuleNotFoundError):
        stood_in("selective_scan_cuda")


@pytest.mark.parametrize(("value", "asked"), [(None, False), ("", False), ("0", False), ("1", True)])
def test_environment(monkeypatch, value, asked):
    monkeypatch.delenv("MMMSV_STAND_IN", raising=False)
    if value is not None:
        monkeypatch.setenv("MMMSV_STAND_IN", value)
    assert is_asked_for() == asked


def test_bad_environment(monkeypatch):
    monkeypatch.setenv("MMMSV_STAND_IN", "yes")
    message = "^environment variable MMMSV_STAND_IN is 'yes'; set it to 1, or to 0 for no stand-ins$"
    with pytest.raises(ValueError, match=message):
        is_asked_for()
