"""Linear layers on maps are torch's, whichever of its products computes them."""

import pytest
import torch
from torch.nn import functional
from torch.utils.flop_counter import FlopCounterMode

from mmmsv.kernels import linear

LARGE, SMALL = (2, 40, 40, 48), (2, 3, 5, 48)  # on either side of what MKL is left with


def weights(outputs=40, inputs=48, dtype=torch.float32):
    generator = torch.Generator().manual_seed(0)
    return torch.randn(outputs, inputs, generator=generator, dtype=dtype), torch.randn(outputs, dtype=dtype)


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


@pytest.mark.parametrize("size", [LARGE, SMALL])
def test_gradients(size):
    gradients = []
    for function in (linear, functional.linear):
        x, *parameters = (t.clone().requires_grad_() for t in (torch.ones(size) / 3, *weights()))
        y = function(x, *parameters)
        gradients.append(
            torch.autograd.grad((y * torch.linspace(-1, 1, y.numel()).view(y.shape)).sum(), (x, *parameters))
        )
    for ours, theirs in zip(*gradients, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-3)


def test_layouts():
    """A map that lies otherwise in memory, and a part of a weight."""
    weight, _ = weights()
    x = torch.randn(2, 48, 40, 40).permute(0, 2, 3, 1)
    with torch.no_grad():
        for part in weight.chunk(2):
            torch.testing.assert_close(linear(x, part), functional.linear(x, part), rtol=1e-4, atol=1e-4)


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
