"""The scan op: its backends against each other and against the recurrence, its gradients, its registration."""

import dataclasses
import functools

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from mmmsv.kernels import BACKENDS, chunked, selective_scan, use_backend

from .scan_inputs import NAMES, scan_inputs

# Relative to the largest absolute value; a wrong index is off by about 1.
TOLERANCE = {torch.float64: 1e-12, torch.float32: 2e-5, torch.bfloat16: 2e-2, torch.float16: 3e-3}


def assert_near(ours, theirs, tolerance):
    assert ours.shape == theirs.shape
    scale = theirs.detach().abs().max().double().clamp(min=1.0) if theirs.numel() else 1.0
    torch.testing.assert_close(ours.double() / scale, theirs.double() / scale, rtol=0, atol=tolerance)


def run(backend, inputs, softplus=True):
    """Return y and the gradients of a loss that weighs each output differently, in the order of NAMES."""
    with use_backend(backend):
        y = selective_scan(**inputs, delta_softplus=softplus)
        weight = torch.arange(y.numel(), dtype=torch.float64).cos().view(y.shape).to(y.dtype)
        return y, *torch.autograd.grad((y * weight).sum(), list(inputs.values()))


def test_reference_is_the_recurrence():
    """The oracle itself, against the formula written out in scalars."""
    t = {name: tensor.detach() for name, tensor in scan_inputs(batch=2, dim=4, length=5, state=3, groups=2).items()}
    with use_backend("reference"):
        y = selective_scan(**t, delta_softplus=True)
    for b in range(2):
        for d in range(4):
            h = [0.0] * 3
            for i in range(5):
                step = torch.log1p(torch.exp(t["delta"][b, d, i] + t["delta_bias"][d]))
                h = [
                    torch.exp(step * t["A"][d, n]) * h[n] + step * t["B"][b, d // 2, n, i] * t["u"][b, d, i]
                    for n in range(3)
                ]
                expected = sum(t["C"][b, d // 2, n, i] * h[n] for n in range(3)) + t["D"][d] * t["u"][b, d, i]
                assert y[b, d, i].item() == pytest.approx(expected.item(), rel=1e-12)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(("state", "groups"), [(1, 1), (16, 1), (1, 2), (16, 4), (2, 3)])
@pytest.mark.parametrize("length", [1, 7, 37])
@pytest.mark.parametrize("softplus", [True, False])
def test_gradcheck(backend, state, groups, length, softplus):
    inputs = scan_inputs(batch=1, dim=12 if groups == 4 else 6, length=length, state=state, groups=groups)
    if not softplus:  # the step as it is, without bias: positive, so that the state stays small
        inputs["delta"] = inputs["delta"].detach().abs().requires_grad_()
    arguments = list(inputs.values())[: 7 if softplus else 6]
    with use_backend(backend):
        scan = functools.partial(selective_scan, delta_softplus=softplus)
        assert torch.autograd.gradcheck(scan, arguments, fast_mode=True)


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize(("state", "groups"), [(1, 1), (2, 3), (16, 2)])
@pytest.mark.parametrize("length", [1, 15, 16, 17, 33, 257, 4099])
def test_chunked_equals_reference(dtype, state, groups, length):
    inputs = scan_inputs(length=length, state=state, groups=groups, dtype=dtype)
    # The oracle runs in float64 from the same rounded inputs.
    exact = {name: tensor.detach().double().requires_grad_() for name, tensor in inputs.items()}
    for name, ours, theirs in zip(("y", *NAMES), run("torch", inputs), run("reference", exact), strict=True):
        assert ours.dtype == (inputs["u"].dtype if name == "y" else inputs[name].dtype)
        assert_near(ours, theirs, TOLERANCE[dtype])


@pytest.mark.parametrize("elements", [1, 2000, 10_000])
@pytest.mark.parametrize("length", [33, 34, 700])
def test_chunk_borders(monkeypatch, elements, length):
    """The state crosses from chunk to chunk, forwards and backwards, wherever the borders fall."""
    monkeypatch.setattr(chunked, "_ELEMENTS", elements)
    inputs = scan_inputs(length=length, state=3)
    for ours, theirs in zip(run("torch", inputs), run("reference", inputs), strict=True):
        assert_near(ours, theirs, 1e-12)


@pytest.mark.parametrize("scale", [1e-6, 1.0, 1e3])
@pytest.mark.parametrize("softplus", [False, True])
def test_any_step_size_is_exact(scale, softplus):
    """Decays from 1 - 1e-6 down to exactly 0: nothing is divided by them."""
    inputs = scan_inputs(length=300, dtype=torch.float32)
    with torch.no_grad():
        inputs["delta"].copy_(inputs["delta"].abs() * scale)
        if not softplus:
            inputs["delta_bias"].zero_()
    exact = {name: tensor.detach().double().requires_grad_() for name, tensor in inputs.items()}
    for ours, theirs in zip(run("torch", inputs, softplus), run("reference", exact, softplus), strict=True):
        assert ours.isfinite().all()
        assert_near(ours, theirs, 2e-5)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(("batch", "length"), [(0, 5), (2, 0), (0, 0)])
def test_empty(backend, batch, length):
    results = run(backend, scan_inputs(batch=batch, length=length, state=2))
    assert results[0].shape == (batch, 6, length)
    for name, gradient in zip(NAMES, results[1:], strict=True):
        assert not gradient.any(), name


@pytest.mark.parametrize("backend", BACKENDS)
def test_optional_weights(backend):
    """Without D and bias the result is that of zeros, and B and C may leave out the group axis."""
    t = scan_inputs(state=2)
    zeros = torch.zeros(6, dtype=torch.float64)
    with use_backend(backend):
        bare = selective_scan(t["u"], t["delta"], t["A"], t["B"][:, 0], t["C"][:, 0])
        full = selective_scan(t["u"], t["delta"], t["A"], t["B"], t["C"], zeros, zeros)
        torch.testing.assert_close(bare, full, rtol=0, atol=0)
        bare.sum().backward()
    assert t["u"].grad is not None
    assert t["D"].grad is None


@pytest.mark.parametrize("backend", BACKENDS)
def test_strides_do_not_matter(backend):
    """Channels-last, contiguous, and strided inputs give one result, in the layout of u."""
    plain = scan_inputs(dim=8, length=40, state=2, groups=2)
    strided = {
        name: torch.stack((tensor.detach(), tensor.detach()), -1)[..., 0].requires_grad_()
        for name, tensor in plain.items()
    }
    contiguous = {name: tensor.detach().contiguous().requires_grad_() for name, tensor in plain.items()}
    assert not plain["u"].is_contiguous()
    for layout in (strided, contiguous):
        for ours, theirs in zip(run(backend, layout), run(backend, plain), strict=True):
            assert_near(ours, theirs, 1e-13)
    assert run(backend, plain)[0].stride() == plain["u"].stride()


@pytest.mark.parametrize(("state", "groups"), [(1, 1), (3, 2)])
@pytest.mark.parametrize("optional", [True, False])
def test_opcheck(state, groups, optional):
    arguments = list(scan_inputs(length=9, state=state, groups=groups, dtype=torch.float32).values())
    if not optional:
        arguments[5:] = [None, None]
    torch.library.opcheck(torch.ops.mmmsv.selective_scan, (*arguments, True))
    arguments = [None if tensor is None else tensor.detach() for tensor in arguments]
    dy, states = torch.randn(2, 6, 9), torch.zeros(2, 1, state, 6)
    torch.library.opcheck(torch.ops.mmmsv.selective_scan_backward, (dy, states, *arguments, True))


def test_flops():
    inputs = scan_inputs(batch=3, dim=6, length=50, state=4, dtype=torch.float32)
    with FlopCounterMode(display=False) as counter:
        y = selective_scan(**inputs)
    assert counter.get_total_flops() == 3 * (9 * 50 * 6 * 4 + 50 * 6)
    with FlopCounterMode(display=False) as counter:
        y.sum().backward()
    assert counter.get_total_flops() == 3 * 50 * 6 * (23 * 4 + 8)


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_second_derivative_is_refused(backend):
    inputs = scan_inputs(length=5)
    with use_backend(backend):
        y = selective_scan(**inputs, delta_softplus=True)
        (du,) = torch.autograd.grad(y.square().sum(), inputs["u"], create_graph=True)
        with pytest.raises(NotImplementedError, match="selective_scan has first derivatives only"):
            du.sum().backward()


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_gpu_equals_cpu(dtype):
    inputs = scan_inputs(length=700, state=2, groups=2, dtype=dtype)
    on_gpu = {name: tensor.detach().cuda().requires_grad_() for name, tensor in inputs.items()}
    for ours, theirs in zip(run("torch", on_gpu), run("torch", inputs), strict=True):
        assert_near(ours.cpu(), theirs, TOLERANCE[dtype])


def test_compiles_without_graph_break():
    inputs = scan_inputs(dtype=torch.float32)
    compiled = torch.compile(selective_scan, fullgraph=True, backend="aot_eager")
    assert_near(compiled(**inputs), selective_scan(**inputs), 1e-6)


def test_backend_choice(monkeypatch):
    inputs = scan_inputs(dtype=torch.float32)
    calls = []
    for name, backend in BACKENDS.items():
        spy = lambda scan, name=name, real=backend.selective_scan: calls.append(name) or real(scan)  # noqa: E731
        monkeypatch.setitem(BACKENDS, name, dataclasses.replace(backend, selective_scan=spy))
    selective_scan(**inputs)
    with use_backend("reference"):
        selective_scan(**inputs)
    monkeypatch.setenv("MMMSV_BACKEND", "reference")
    selective_scan(**inputs)
    with use_backend("torch"):
        selective_scan(**inputs)
    assert calls == ["torch", "reference", "reference", "torch"]
    monkeypatch.setenv("MMMSV_BACKEND", "abacus")
    with pytest.raises(ValueError, match=r"MMMSV_BACKEND: there is no scan backend 'abacus'; choose one of torch, ref"):
        selective_scan(**inputs)
    with pytest.raises(ValueError, match="no scan backend 'abacus'"), use_backend("abacus"):
        pass


@pytest.mark.parametrize(
    ("name", "value", "error", "message"),
    [
        ("u", torch.ones(2, 6), ValueError, r"u has shape \(2, 6\), expected \(batch, D, L\)"),
        ("u", [1.0], TypeError, "u is a list, expected a torch.Tensor"),
        ("u", torch.ones(2, 6, 37, dtype=torch.int64), TypeError, "u is torch.int64, expected one of float16"),
        ("delta", torch.ones(2, 6, 36), ValueError, r"delta has shape \(2, 6, 36\), expected .*\(2, 6, 37\)"),
        (
            "delta",
            torch.ones(2, 6, 37, dtype=torch.float64),
            TypeError,
            "delta is torch.float64 and u is torch.float32",
        ),
        ("A", torch.ones(5, 1), ValueError, r"A has shape \(5, 1\), expected \(D, N\) = \(6, N >= 1\)"),
        ("A", torch.ones(6, 0), ValueError, r"A has shape \(6, 0\), expected"),
        ("B", torch.ones(2, 1, 2, 37), ValueError, r"B has shape \(2, 1, 2, 37\), expected \(batch, G, N, L\)"),
        ("B", torch.ones(2, 2, 1, 37), ValueError, r"B \(2, 2, 1, 37\) and C \(2, 1, 1, 37\) must have one shape"),
        ("C", torch.ones(2, 1, 1, 36), ValueError, r"C has shape \(2, 1, 1, 36\), expected"),
        ("D", torch.ones(6, 1), ValueError, r"D has shape \(6, 1\), expected \(D,\) = \(6,\)"),
        ("delta_softplus", torch.ones(6), TypeError, "delta_softplus is a Tensor, expected True or False"),
        ("delta_bias", torch.ones(5), ValueError, r"delta_bias has shape \(5,\), expected"),
        ("delta_bias", torch.ones(6, device="meta"), ValueError, "delta_bias is on meta and u on cpu"),
    ],
)
def test_bad_input(name, value, error, message):
    inputs = {**scan_inputs(dtype=torch.float32), name: value}
    with pytest.raises(error, match=message):
        selective_scan(**inputs)


def test_groups_must_divide_the_channels():
    inputs = scan_inputs(dim=6, groups=1, dtype=torch.float32)
    inputs["B"] = inputs["C"] = torch.ones(2, 4, 1, 37)
    with pytest.raises(ValueError, match="the 4 groups of B do not divide the D = 6 channels of u"):
        selective_scan(**inputs)
