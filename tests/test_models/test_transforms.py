"""The transforms of torch.func: what torch.autograd gives, sample by sample."""

import pytest
import torch
from torch.func import functional_call, grad, hessian, jacrev, jvp, vjp, vmap

from mmmsv.kernels import gate
from mmmsv.models import MSVMamba, VMamba

BACKBONES = {"nano": MSVMamba, "v3_tiny": MSVMamba, "tiny": VMamba, "v2_tiny_s1l8": VMamba}
SAMPLES = torch.randn(3, 3, 16, 16, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
needs_vmap = pytest.mark.skipif(torch.__version__ < "2.5", reason="torch takes the rules of ops from 2.5 on")


@pytest.fixture(params=[(name, options) for name in BACKBONES for options in ({}, {"with_cp": True})], ids=str)
def model(request):
    name, options = request.param
    torch.manual_seed(0)
    settings = {"base": name, "embed_dims": (16, 24), "depths": (1, 1)}
    return BACKBONES[name](settings, drop_path_rate=0.0, **options).double().train()


@pytest.fixture
def weights(model):
    return {name: parameter.detach() for name, parameter in model.named_parameters()}


def loss_of(model, weights, image):
    """A sum in which each number has a weight of its own: that of squares of normalised maps hardly has a gradient."""
    maps = functional_call(model, weights, (image,))
    return sum((each * torch.arange(each[0].numel()).cos().view_as(each[0])).sum() for each in maps)


def gradients(model, image):
    loss, names = loss_of(model, {}, image), dict(model.named_parameters())
    return dict(zip(names, torch.autograd.grad(loss, model.parameters()), strict=True))


def assert_close(ours, theirs):
    """Beside the largest number of each tensor; none is all zeros, but where a layer of few units has died."""
    if not isinstance(theirs, dict):
        ours, theirs = {"": ours}, {"": theirs}
    assert ours.keys() == theirs.keys()
    for name, tensor in theirs.items():
        assert tensor.any() or ".se." in name, name
        torch.testing.assert_close(ours[name], tensor, rtol=0, atol=1e-11 * float(tensor.abs().max()))


def test_gradients(model, weights):
    assert_close(grad(lambda weights: loss_of(model, weights, SAMPLES))(weights), gradients(model, SAMPLES))


@needs_vmap
def test_gradients_of_each_sample(model, weights):
    ours = vmap(grad(lambda weights, image: loss_of(model, weights, image[None])), (None, 0))(weights, SAMPLES)
    for i, image in enumerate(SAMPLES):
        assert_close({name: gradient[i] for name, gradient in ours.items()}, gradients(model, image[None]))


@needs_vmap
def test_vmap_over_samples(model, weights):
    ours = vmap(lambda image: functional_call(model, weights, (image[None],)))(SAMPLES)
    for mine, its in zip(ours, model(SAMPLES), strict=True):
        assert_close(mine[:, 0], its.detach())


@needs_vmap
def test_vmap_over_weights(model, weights):
    both = {name: torch.stack((weight, 1.1 * weight)) for name, weight in weights.items()}
    ours = vmap(lambda weights: functional_call(model, weights, (SAMPLES,)))(both)
    for mine, its in zip(ours, model(SAMPLES), strict=True):
        assert_close(mine[0], its.detach())


@needs_vmap
def test_a_gradient_of_vmap(model, weights):
    loss = lambda weights: vmap(lambda image: loss_of(model, weights, image[None]))(SAMPLES).sum()  # noqa: E731
    assert_close(grad(loss)(weights), gradients(model, SAMPLES))


@needs_vmap
def test_jacobians(model, weights):
    means = lambda image: functional_call(model, weights, (image,))[1].mean((2, 3))  # noqa: E731
    theirs = torch.autograd.functional.jacobian(means, SAMPLES[:1])
    assert_close(jacrev(means)(SAMPLES[:1]), theirs)
    y, pull_back = vjp(means, SAMPLES[:1])
    weights_of_y = torch.arange(y.numel(), dtype=y.dtype).cos().view_as(y)
    assert_close(pull_back(weights_of_y)[0], torch.tensordot(weights_of_y, theirs, 2))


@pytest.mark.parametrize("model", [("nano", {})], ids=str, indirect=True)
def test_what_has_no_derivative_says_so(model):
    loss = lambda image: model(image)[1].square().sum()  # noqa: E731
    with pytest.raises(NotImplementedError, match="layer_norm has no forward-mode derivative, and x carries a tangent"):
        jvp(loss, (SAMPLES,), (SAMPLES,))
    with pytest.raises(NotImplementedError, match=r"mmmsv::.* no forward-mode derivative \(jvp, jacfwd\); take jacrev"):
        hessian(loss)(SAMPLES[:1])
    with pytest.raises(NotImplementedError, match=r"mmmsv::.* has first derivatives only, not second ones"):
        jacrev(grad(loss))(SAMPLES[:1])


def test_what_is_left_over_from_a_transform():
    """A tensor that a transformed function has given away is a plain one afterwards."""
    x, left = torch.randn(1, 2, 3, 4, requires_grad=True), []
    grad(lambda y: (left.append(2 * y), y.sum())[1])(x.detach())
    torch.testing.assert_close(gate(left[0], x), gate(2 * x, x))
