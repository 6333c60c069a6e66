"""The whole signature of selective_scan, against a loop over the tokens in float64."""

import functools
import itertools

import pytest
import torch
from torch.nn.functional import silu, softplus

from mmmsv.kernels import selective_scan, use_backend

from ..simulator import SIMULATED
from .scan_inputs import (
    INTERPRETED,
    RUNNABLE,
    TOLERANCE,
    assert_near,
    device_of,
    exact,
    loss,
    run_with_last_state,
    scan_inputs,
)

BATCH, CHANNELS, STATE, LENGTHS = 2, 4, 2, (1, 5, 66)
# Of B and C: of each channel, of each token, of each token and group.
PROJECTIONS = {
    "channel": lambda length: (CHANNELS, STATE),
    "token": lambda length: (BATCH, STATE, length),
    "groups": lambda length: (BATCH, 2, STATE, length),
}
KINDS = [pair for pair in itertools.product(PROJECTIONS, repeat=2) if set(pair) != {"token", "groups"}]
SWITCHES = list(itertools.product([False, True], repeat=6))  # D, z, delta_bias, h0, delta_softplus, return_last_state
FULL = [name for name in RUNNABLE if name not in INTERPRETED]
ALL = {"state": 3, "groups": 2, "all_of_them": True}


def loop(u, delta, A, B, C, D=None, z=None, delta_bias=None, delta_softplus=False, h0=None):
    """Compute y and the last state token by token, as the equations have it."""
    batch, channels, length = u.shape

    def of_each_channel(projection):
        if projection.dim() == 2:
            return projection[None, :, :, None].expand(batch, -1, -1, length)
        groups = projection if projection.dim() == 4 else projection[:, None]
        return groups.repeat_interleave(channels // groups.shape[1], 1)

    B, C = of_each_channel(B), of_each_channel(C)
    step = delta if delta_bias is None else delta + delta_bias[:, None]
    step = softplus(step) if delta_softplus else step
    h = u.new_zeros(batch, channels, A.shape[1]) if h0 is None else h0
    ys = []
    for t in range(length):
        h = torch.exp(step[:, :, t, None] * A) * h + step[:, :, t, None] * B[..., t] * u[:, :, t, None]
        ys.append((C[..., t] * h).sum(-1))
    y = torch.stack(ys, 2)
    y = y if D is None else y + D[:, None] * u
    return (y if z is None else y * silu(z)), h


def choose(index, dtype):
    """Return the tensors and switches of a combination of options."""
    (B, C), switches = KINDS[index // len(SWITCHES)], SWITCHES[index % len(SWITCHES)]
    *given, delta_softplus, return_last_state = switches
    length, wide = LENGTHS[index % len(LENGTHS)], torch.promote_types(dtype, torch.float32)
    normal = functools.partial(torch.randn, generator=torch.Generator().manual_seed(index), dtype=torch.float64)
    of_token = (BATCH, CHANNELS, length)
    delta = normal(of_token)
    tensors = {
        "u": normal(of_token).to(dtype),
        "delta": (delta if delta_softplus else delta.abs() / 2).to(dtype),
        "A": -normal(CHANNELS, STATE).exp().to(wide),
        "B": normal(PROJECTIONS[B](length)).to(wide if B == "channel" else dtype),
        "C": normal(PROJECTIONS[C](length)).to(wide if C == "channel" else dtype),
    }
    optional = {
        "D": normal(CHANNELS).to(wide),
        "z": normal(of_token).to(dtype),
        "delta_bias": normal(CHANNELS).abs().to(wide) / 2,
        "h0": normal(BATCH, CHANNELS, STATE).to(wide),
    }
    tensors.update({name: optional[name] for name, is_given in zip(optional, given, strict=True) if is_given})
    return tensors, delta_softplus, return_last_state


@functools.cache
def expected(index, dtype):
    """Return y, the last state, and the gradients of a loss of what is returned, for the rounded inputs."""
    tensors, delta_softplus, return_last_state = choose(index, dtype)
    tensors = exact(tensors)
    y, h = loop(**tensors, delta_softplus=delta_softplus)
    total = loss(y) + loss(h) if return_last_state else loss(y)
    return y.detach(), h.detach(), torch.autograd.grad(total, list(tensors.values()))


@pytest.mark.slow
@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("backend", FULL)
def test_every_combination(backend, dtype):
    # For all of them the simulator takes minutes, and so does the compilation of Triton's kernels on a GPU.
    for index in range(0, len(KINDS) * len(SWITCHES), 23 if SIMULATED or backend == "triton" else 1):
        tensors, delta_softplus, return_last_state = choose(index, dtype)
        tensors = {name: tensor.to(device_of(backend)).requires_grad_() for name, tensor in tensors.items()}
        switches = {"delta_softplus": delta_softplus, "return_last_state": return_last_state}
        with use_backend(backend):
            results = selective_scan(**tensors, **switches)
            results = results if return_last_state else (results,)
            gradients = torch.autograd.grad(sum(map(loss, results)), list(tensors.values()))
        *theirs, of_loop = expected(index, dtype)
        what = f"{KINDS[index // len(SWITCHES)]}, {list(tensors)}, {switches}: "
        dtypes = (dtype, torch.promote_types(dtype, torch.float32))
        for name, ours, wanted, its_dtype in zip(("y", "last state"), results, theirs, dtypes, strict=False):
            assert ours.dtype == its_dtype, what + name
            assert_near(ours.cpu(), wanted, TOLERANCE[dtype], what + name)
        for name, ours, wanted in zip(tensors, gradients, of_loop, strict=True):
            assert ours.dtype == tensors[name].dtype, what + name
            assert_near(ours.cpu(), wanted, TOLERANCE[dtype], f"{what}gradient of {name}")


@pytest.mark.parametrize("backend", RUNNABLE)
def test_arguments_are_in_the_order_of_mamba_ssm(backend):
    inputs = {name: tensor.detach().to(device_of(backend)) for name, tensor in scan_inputs(**ALL, length=9).items()}
    names = ("u", "delta", "A", "B", "C", "D", "z", "delta_bias")
    with use_backend(backend):
        y, last = selective_scan(*(inputs[name] for name in names), True, True, inputs["h0"])
    theirs = loop(**{name: tensor.cpu() for name, tensor in inputs.items()}, delta_softplus=True)
    assert_near(y.cpu(), theirs[0], 1e-12)
    assert_near(last.cpu(), theirs[1], 1e-12)


@pytest.mark.parametrize("backend", FULL)
def test_piece_by_piece(backend):
    """The last state of a piece is the h0 of the next; values and gradients are those of the whole."""
    whole = scan_inputs(**ALL, length=29)
    inputs = {name: tensor.detach().to(device_of(backend)).requires_grad_() for name, tensor in whole.items()}
    with use_backend(backend):
        h, ys = inputs["h0"], []
        for begin, end in ((0, 3), (3, 20), (20, 29)):
            piece = {n: t[..., begin:end] if n in ("u", "delta", "B", "C", "z") else t for n, t in inputs.items()}
            y, h = selective_scan(**{**piece, "h0": h}, delta_softplus=True, return_last_state=True)
            ys.append(y)
        y = torch.cat(ys, 2)
        gradients = torch.autograd.grad(loss(y) + loss(h), list(inputs.values()))
    for ours, theirs in zip((y, h, *gradients), run_with_last_state(backend, whole), strict=True):
        assert_near(ours.detach().cpu(), theirs, 1e-12)


@pytest.mark.parametrize("backend", RUNNABLE)
@pytest.mark.parametrize(("batch", "length"), [(0, 5), (2, 0), (0, 0)])
def test_empty(backend, batch, length):
    """Without tokens the last state is the first one."""
    inputs = scan_inputs(**ALL, batch=batch, length=length)
    y, last, *gradients = run_with_last_state(backend, inputs)
    assert y.shape == (batch, 6, length)
    torch.testing.assert_close(last, inputs["h0"].detach(), rtol=0, atol=0)
    for name, gradient in zip(inputs, gradients, strict=True):
        assert gradient.any() == (name == "h0" and batch > 0), name


@pytest.mark.parametrize("backend", FULL)
def test_one_of_two_results(backend):
    """The gradients of y alone and of the last state alone add up to those of both."""
    inputs = {
        name: tensor.detach().to(device_of(backend)).requires_grad_()
        for name, tensor in scan_inputs(**ALL, length=9).items()
    }
    with use_backend(backend):
        y, last = selective_scan(**inputs, return_last_state=True)
        of_each = [
            torch.autograd.grad(loss(one), list(inputs.values()), retain_graph=True, allow_unused=True)
            for one in (y, last)
        ]
    both = run_with_last_state(backend, inputs, softplus=False)[2:]
    for name, one, other, together in zip(inputs, *of_each, both, strict=True):
        assert_near((one + other).cpu(), together, 1e-12, name)


@pytest.mark.parametrize("B", ["tokens", "channels"])
def test_gradients_of_each_sample(B):
    """By torch.func, of a sum that takes both results."""
    inputs = {name: tensor.detach() for name, tensor in scan_inputs(**ALL, length=9).items()}
    if B == "channels":
        inputs["B"] = inputs["A"].clone()

    def total(inputs):
        y, last = selective_scan(**inputs, delta_softplus=True, return_last_state=True)
        return loss(y) + loss(last)

    ours = torch.func.grad(total)(inputs)
    leaves = {name: tensor.clone().requires_grad_() for name, tensor in inputs.items()}
    for name, theirs in zip(leaves, torch.autograd.grad(total(leaves), list(leaves.values())), strict=True):
        torch.testing.assert_close(ours[name], theirs)


LAYOUTS = {
    "channels last": lambda x: x.transpose(-1, -2).contiguous().transpose(-1, -2),
    "contiguous": lambda x: x.contiguous(),
    "batch innermost": lambda x: x.movedim(0, -1).contiguous().movedim(-1, 0),
    "every third token": lambda x: x.repeat_interleave(3, -1)[..., 1::3],
    "every second channel": lambda x: x.repeat_interleave(2, 1)[:, ::2],
    "part of a larger tensor": lambda x: torch.nn.functional.pad(x, (2, 3))[..., 2:-3],
}


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("backend", [name for name in FULL if name != "reference"])
def test_layouts(backend, layout):
    """Blocks of channels and chunks of tokens that are not whole; y lies in memory as u does."""
    sizes = {"dim": 2 * 97, "length": 70 if backend == "cpu" else 9, "state": 2, "groups": 2, "all_of_them": True}
    inputs = scan_inputs(**sizes, dtype=torch.float32)
    laid_out = {
        name: LAYOUTS[layout](tensor.detach()) if name in ("u", "delta", "z", "B", "C") else tensor
        for name, tensor in inputs.items()
    }
    theirs = run_with_last_state("reference", exact(inputs))
    for name, ours, wanted in zip(("y", "last", *inputs), run_with_last_state(backend, laid_out), theirs, strict=True):
        assert_near(ours, wanted, TOLERANCE[torch.float32], name)
    laid_out = {name: tensor.detach().to(device_of(backend)) for name, tensor in laid_out.items()}
    with use_backend(backend):
        y = selective_scan(**laid_out)
    assert y.stride() == torch.empty_like(laid_out["u"]).stride()


@pytest.mark.parametrize("backend", [name for name in FULL if name != "reference"])
def test_a_gradient_without_memory_of_its_own(backend):
    """That of a sum is one number, seen everywhere."""
    inputs = {
        name: tensor.detach().to(device_of(backend)).requires_grad_() for name, tensor in scan_inputs(**ALL).items()
    }
    with use_backend(backend):
        y, last = selective_scan(**inputs, return_last_state=True)
        of_sums = torch.autograd.grad(y.sum() + last.sum(), list(inputs.values()), retain_graph=True)
        ones = torch.ones_like(y), torch.ones_like(last)
        of_ones = torch.autograd.grad((y, last), list(inputs.values()), ones)
    for ours, theirs in zip(of_sums, of_ones, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=0)


@pytest.mark.parametrize("contiguous", [False, True])
@pytest.mark.parametrize("backend", [name for name in FULL if name not in ("torch", "reference")])
def test_bit_for_bit(backend, contiguous):
    """One and two threads, and two runs, give the same bits."""
    inputs = scan_inputs(batch=3, dim=2 * 97, length=130, state=2, groups=2, dtype=torch.float32, all_of_them=True)
    if contiguous:
        inputs = {name: tensor.detach().contiguous() for name, tensor in inputs.items()}
    threads, results = torch.get_num_threads(), []
    try:
        for count in (2, 2, 1):
            torch.set_num_threads(count)
            results.append(run_with_last_state(backend, inputs))
    finally:
        torch.set_num_threads(threads)
    for name, *tensors in zip(("y", "last", *inputs), *results, strict=True):
        assert all(torch.equal(tensor, tensors[0]) for tensor in tensors), name


@pytest.mark.parametrize(
    ("name", "value", "error", "message"),
    [
        ("z", torch.ones(6), ValueError, r"z has shape \(6,\), expected that of u, \(2, 6, 37\)"),
        ("z", torch.ones(2, 6, 37).half(), TypeError, "z is torch.float16 and u is torch.float32; cast one"),
        ("h0", torch.ones(2, 6), ValueError, r"h0 has shape \(2, 6\), expected \(batch, D, N\) = \(2, 6, 1\)"),
        ("h0", torch.ones(2, 1, 6), ValueError, r"h0 has shape \(2, 1, 6\), expected"),
        ("h0", 0, TypeError, "h0 is a int, expected a torch.Tensor"),
        ("return_last_state", 1, TypeError, "return_last_state is a int, expected True or False"),
        (
            "A",
            torch.ones(6, 1, dtype=torch.complex64),
            TypeError,
            "A is torch.complex64, and the states of this scan are real",
        ),
        ("B", torch.ones(1, 6), ValueError, r"B has shape \(1, 6\), expected .* or \(D, N\) = \(6, 1\)"),
        ("C", torch.ones(2, 2, 1, 37), ValueError, r"B .* and C \(2, 2, 1, 37\) must have one number of groups"),
    ],
)
def test_bad_input(name, value, error, message):
    inputs = {**scan_inputs(dtype=torch.float32, all_of_them=True), name: value}
    with pytest.raises(error, match=f"^selective_scan: {message}"):
        selective_scan(**inputs)
