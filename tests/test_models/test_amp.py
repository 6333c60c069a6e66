"""Mixed precision: training under autocast, and what the scans hold in float32 there."""

import copy

import pytest
import torch
from mmengine.optim import AmpOptimWrapper, OptimWrapper
from torch import nn
from torch.nn.functional import cross_entropy, layer_norm, softplus

from mmmsv.kernels import use_backend
from mmmsv.models import MSVMamba, VMamba
from mmmsv.models.layers import LayerNorm
from mmmsv.models.s6 import S6

SMALL = {"embed_dims": (16, 32, 48, 64), "depths": (1, 1, 2, 1)}
FAMILIES = {
    "msvmamba_arxiv": (MSVMamba, "tiny"),
    "msvmamba_neurips": (MSVMamba, "v3_base"),
    "vmamba_arxiv": (VMamba, "tiny"),
    "vmamba_2024": (VMamba, "v2_tiny_s1l8"),
}
GPU = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU")
HALF_ON_CPUS = pytest.mark.skipif(
    torch.__version__ < (2, 4), reason="autocast on CPUs took no float16 before torch 2.4"
)
AUTOCAST = [
    pytest.param("cpu", torch.bfloat16, id="cpu-bfloat16"),
    pytest.param("cuda", torch.bfloat16, id="gpu-bfloat16", marks=GPU),
    pytest.param("cuda", torch.float16, id="gpu-float16", marks=GPU),
]
FLOAT16 = [
    pytest.param("cpu", torch.float16, id="cpu-float16", marks=HALF_ON_CPUS),
    pytest.param("cuda", torch.float16, id="gpu-float16", marks=GPU),
]


def block_of(family):
    """One block of 64 channels, as the family has it."""
    torch.manual_seed(0)
    model, base = FAMILIES[family]
    return model({"base": base, "embed_dims": (64,), "depths": (1,)}, drop_path_rate=0.0).stages[0].blocks[0]


@pytest.mark.slow
@pytest.mark.parametrize(("device", "dtype"), AUTOCAST)
@pytest.mark.parametrize("family", FAMILIES)
def test_trains(family, device, dtype):
    """50 steps with dropped paths, on a GPU as ``--amp`` makes them: every loss is finite, and they fall."""
    torch.manual_seed(0)
    model, base = FAMILIES[family]
    backbone = model({"base": base, **SMALL}, out_indices=(3,), drop_path_rate=0.2, ffn_drop_rate=0.1)
    net = nn.Sequential(backbone, _Pool(), nn.Linear(64, 4)).to(device)
    images, labels = torch.randn(8, 3, 48, 48, device=device), torch.arange(8, device=device) % 4
    optimizer = torch.optim.AdamW(net.parameters(), lr=1e-3)
    wrapper = AmpOptimWrapper(dtype=dtype, optimizer=optimizer) if device == "cuda" else OptimWrapper(optimizer)
    losses = []
    for _ in range(50):
        with torch.autocast(device, dtype):
            loss = cross_entropy(net(images), labels)
        wrapper.update_params(loss)
        losses.append(loss.item())
    assert torch.tensor(losses).isfinite().all()
    assert sum(losses[-5:]) < 0.5 * sum(losses[:5])
    assert all(parameter.isfinite().all() for parameter in net.parameters())


@pytest.mark.parametrize(("device", "dtype"), [*AUTOCAST, FLOAT16[0]])
def test_the_state_is_held_in_float32(device, dtype):
    """A memory of about a thousand tokens, each a small part of it: a state of half precision stops taking them in."""
    torch.manual_seed(0)
    scan = S6(8, 1, 1, ("row",), carry=False).to(device)
    with torch.no_grad():
        for parameter, value in ((scan.dt_weight, 0.0), (scan.dt_bias, -7.0), (scan.skip, 0.0)):
            parameter.fill_(value)
        scan.x_proj.weight.abs_()
        x = torch.rand(1, 64, 64, 8, device=device).to(dtype)
        with torch.autocast(device, dtype):
            y, tokens = scan(x, merge=True).flatten(1, 2), scan.x_proj(x).flatten(1, 2)
    _, B, C = tokens.split(1, dim=-1)

    def recurrence(state):
        step = softplus(scan.dt_bias[0].to(state))
        h, outputs = torch.zeros_like(step), []
        for u, b, c in zip(*(tensor[0].to(state) for tensor in (x.flatten(1, 2), B, C)), strict=True):
            h = torch.exp(-step) * h + step * b * u
            outputs.append(c * h)
        return torch.stack(outputs)

    exact = recurrence(torch.float64)
    error, narrow = ((other.double() - exact).abs().max() / exact.abs().max() for other in (y[0], recurrence(dtype)))
    assert narrow > 0.03
    # y is rounded once, at the end, to bfloat16 at worst.
    assert error < 2**-8


@pytest.mark.parametrize(("device", "dtype"), FLOAT16)
@pytest.mark.parametrize("family", FAMILIES)
def test_a_scan_of_large_activations(family, device, dtype):
    """Maps of some hundreds make millions in the scan, more than float16 holds; the norm behind it takes them back."""
    scan = block_of(family).scan.to(device)
    with torch.no_grad():
        scan.in_proj.weight.mul_(2000)
        x = layer_norm(torch.randn(1, 16, 16, 64, device=device), (64,))
        exact = scan(x)
        with torch.autocast(device, dtype):
            y = scan(x)
    assert (y - exact).abs().mean() < 0.01 * exact.abs().mean()


@pytest.mark.parametrize(("device", "dtype"), FLOAT16)
@pytest.mark.parametrize("family", FAMILIES)
def test_a_block_of_the_largest_numbers(family, device, dtype):
    """Squares in norms and the mean of squeeze-and-excitation do not leave float16, forth or back."""
    block = block_of(family).to(device)
    x = (torch.randn(1, 16, 16, 64, device=device) * 2e4).clamp(-5e4, 5e4).to(dtype).requires_grad_()
    with torch.autocast(device, dtype):
        y = block(x)
    y.float().mean().backward()
    assert y.isfinite().all()
    assert all(tensor.grad.isfinite().all() for tensor in (x, *block.parameters()))


@pytest.mark.parametrize(("device", "dtype"), FLOAT16)
def test_a_model_in_float16_with_decay_rates_in_float32(device, dtype):
    torch.manual_seed(0)
    scan = S6(8, 2, 1, ("row",), carry=False).to(device)
    x = torch.randn(1, 6, 5, 8, device=device)
    exact, A_log = scan(x, merge=True), scan.A_log.detach().clone()
    scan.to(dtype).A_log.data = A_log
    torch.testing.assert_close(scan(x.to(dtype), merge=True), exact, rtol=1e-2, atol=1e-2)


@HALF_ON_CPUS
@pytest.mark.parametrize("backend", ["cpu", "torch"])
@pytest.mark.parametrize("family", FAMILIES)
def test_a_model_in_float16_with_large_scans(family, backend):
    """Maps and gradients are finite where they are under autocast: scans give float32 whatever the weights are."""
    model, base = FAMILIES[family]
    torch.manual_seed(0)
    backbone = model({"base": base, "embed_dims": (32,), "depths": (1,)}, drop_path_rate=0.0)
    with torch.no_grad():
        backbone.stages[0].blocks[0].scan.in_proj.weight.mul_(2000)
    image = torch.randn(1, 3, 32, 32)
    exact = backbone(image)[0]
    half = copy.deepcopy(backbone).half()
    with use_backend(backend):
        y = half(image.half())[0]
        y.float().square().mean().mul(2**10).backward()
    assert y.dtype == torch.float16
    assert (y - exact).abs().mean() < 0.01 * exact.abs().mean()
    assert all(weight.grad.isfinite().all() for weight in half.parameters())


@HALF_ON_CPUS
@pytest.mark.parametrize("kept", [LayerNorm, S6])
@pytest.mark.parametrize("family", FAMILIES)
def test_a_model_in_float16_with_some_layers_in_float32(family, kept):
    block = block_of(family)
    x = torch.randn(1, 8, 8, 64)
    exact = block(x)
    for layer in block.half().modules():
        if isinstance(layer, kept):
            layer.float()
    block.scan.full_scan.x_proj.half()  # a product, which takes what the convolution before it gives
    if hasattr(block.scan, "half_scan"):
        block.scan.half_scan.x_proj.half()
    y = block(x.half())
    assert y.dtype == torch.float16
    torch.testing.assert_close(y.float(), exact, rtol=1e-2, atol=1e-2)


class _Pool(nn.Module):
    def forward(self, maps):
        return maps[-1].mean((2, 3))
