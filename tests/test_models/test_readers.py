"""Where a map has two readers, kernels add their gradients; these are what autograd makes of the same model."""

import copy

import pytest
import torch

from mmmsv.kernels import use_backend
from mmmsv.models import MSVMamba, VMamba, blocks, ms2d, s6

from ..test_kernels.reader_cases import plain_branch_off, plain_read_twice
from ..test_kernels.scan_inputs import RUNNABLE, device_of
from .adapters import LowRank


@pytest.fixture
def let_autograd_add(monkeypatch):
    def patch():
        for module in (blocks, ms2d, s6):
            monkeypatch.setattr(module, "branch_off", plain_branch_off, raising=False)
            monkeypatch.setattr(module, "read_twice", plain_read_twice, raising=False)

    return patch


def small(family, base, **options):
    torch.manual_seed(0)
    settings = {"base": base, "embed_dims": (16, 24), "depths": (2, 1)}
    return family(settings, out_indices=(0, 1), drop_path_rate=0.3, **options).double()


def gradients(model, image, dtype=None):
    torch.manual_seed(1)  # of drop path
    image = image.clone().requires_grad_()
    with torch.autocast(image.device.type, dtype, enabled=dtype is not None):
        loss = sum(y.square().sum() + y.sum() for y in model(image))
    return torch.autograd.grad(loss, [image, *model.parameters()])


MODELS = [(MSVMamba, "tiny"), (MSVMamba, "v3_tiny"), (VMamba, "tiny"), (VMamba, "v2_tiny_s1l8")]


@pytest.mark.parametrize("options", [{}, {"recompute": True}, {"recompute": False}, {"with_cp": True}], ids=str)
@pytest.mark.parametrize(("family", "base"), MODELS)
def test_gradients(let_autograd_add, family, base, options):
    model, image = small(family, base, **options), torch.randn(2, 3, 36, 44, dtype=torch.float64)
    ours = gradients(model, image)
    assert all(torch.equal(one, other) for one, other in zip(gradients(copy.deepcopy(model), image), ours, strict=True))
    let_autograd_add()
    for one, other in zip(ours, gradients(model, image), strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-12 * other.abs().max().item())


@pytest.mark.parametrize("options", [{"recompute": False}, {"with_cp": True}], ids=str)
def test_gradients_under_autocast(let_autograd_add, options):
    """In bfloat16 sums are rounded less often."""
    model, image = small(MSVMamba, "tiny", **options).float(), torch.randn(2, 3, 36, 44)
    ours = gradients(model, image, torch.bfloat16)
    let_autograd_add()
    theirs = gradients(model, image, torch.bfloat16)
    assert [one.dtype for one in ours] == [other.dtype for other in theirs]
    for one, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=0.1 * other.abs().max().item())


@pytest.mark.slow
@pytest.mark.parametrize("options", [{"recompute": False}, {"recompute": True}, {"with_cp": True}], ids=str)
@pytest.mark.skipif("triton" not in RUNNABLE, reason="there is no Triton here")
def test_gradients_by_triton(let_autograd_add, options):
    """With kernels for norms, too."""
    block = small(MSVMamba, "tiny", **options).stages[0].to(device_of("triton"))
    block.blocks = block.blocks[:1]
    x = torch.randn(1, 5, 4, 16, dtype=torch.float64, device=device_of("triton"))

    def with_gradients():
        torch.manual_seed(1)
        leaf = x.clone().requires_grad_()
        return torch.autograd.grad(block(leaf).square().sum(), [leaf, *block.parameters()])

    with use_backend("triton"):
        ours = with_gradients()
    let_autograd_add()
    with use_backend("torch"):
        theirs = with_gradients()
    for one, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-11 * other.abs().max().item())


@pytest.mark.parametrize("hook", [None, "pre", "full"])
def test_adapters_and_hooks(let_autograd_add, hook):
    model = small(MSVMamba, "tiny")
    scan = model.stages[0].blocks[0].scan
    scan.in_proj, scan.full_scan.x_proj = LowRank(scan.in_proj), LowRank(scan.full_scan.x_proj)
    model.double()
    norm = model.stages[0].blocks[0].norm1
    for layer in (scan.half_conv, scan.full_conv, norm):
        if hook == "pre":
            layer.register_forward_pre_hook(lambda layer, inputs: (inputs[0] * 2,))
        if hook == "full":
            layer.register_full_backward_hook(lambda layer, dxs, dys: (dxs[0] * 2,))
    image = torch.randn(1, 3, 36, 44, dtype=torch.float64)

    def trained():
        torch.manual_seed(1)
        weights = [weight for weight in model.parameters() if weight.requires_grad]
        return torch.autograd.grad(sum(y.square().sum() for y in model(image)), weights)

    ours = trained()
    let_autograd_add()
    for one, other in zip(ours, trained(), strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-12 * max(other.abs().max().item(), 1))
