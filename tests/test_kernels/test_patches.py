"""Layers that lower the resolution in one call give what their steps give, and leave alone what they do not take."""

import pytest
import torch
from torch.nn import functional

from mmmsv.kernels.backends.cpu import patches as cpu_patches
from mmmsv.kernels.whole_block import Norm, Patches

from .block_inputs import on_any_processor
from .fused_inputs import needs_library, spread
from .scan_inputs import assert_near

pytestmark = needs_library

# Relative to the largest number: of sums of some tens of numbers, through norms.
TOLERANCE = {torch.float32: 32 * torch.finfo(torch.float32).eps, torch.bfloat16: 4 * torch.finfo(torch.bfloat16).eps}
MERGING, CONV, STEM = "merging", "conv", "conv without a bias"
# Two with more rows than are computed at once.
SIZES = [(1, 1, 1), (2, 6, 4), (3, 5, 7), (1, 2, 9), (1, 57, 41), (9, 16, 14)]


@pytest.fixture(autouse=True, scope="module")
def take_patches():
    with on_any_processor():
        yield


def layer(kind, channels=10, outputs=21, dtype=torch.float32):
    generator = torch.Generator().manual_seed(0)

    def draw(*shape):
        return torch.randn(shape, generator=generator).div(3).to(dtype)

    def norm(size):
        return Norm(1 + draw(size), draw(size), 0.25)

    if kind == MERGING:
        weight, bias = draw(outputs, 4 * channels), draw(outputs)
        return Patches(norm(4 * channels), weight, bias, None, kernel=2, stride=2, padding=0)
    weight, bias = draw(outputs, channels, 3, 3), draw(outputs) if kind == CONV else None
    return Patches(None, weight, bias, norm(outputs), kernel=3, stride=2, padding=1)


def by_steps(x, layer):
    """Compute it in float64, from what the library gets."""
    layer = Patches(*(part.double() if isinstance(part, torch.Tensor) else part for part in layer))
    x = x.double()

    def normalise(x, norm):
        return (
            x if norm is None else functional.layer_norm(x, x.shape[-1:], norm[0].double(), norm[1].double(), norm[2])
        )

    if layer.weight.dim() == 4:
        y = functional.conv2d(x.permute(0, 3, 1, 2), layer.weight, layer.bias, layer.stride, layer.padding)
        return normalise(y.permute(0, 2, 3, 1), layer.norm_out)
    x = functional.pad(x, (0, 0, 0, x.shape[2] % 2, 0, x.shape[1] % 2))
    patches = torch.cat([x[:, row::2, column::2] for column in (0, 1) for row in (0, 1)], -1)
    return functional.linear(normalise(patches, layer.norm_in), layer.weight, layer.bias)


def map_of(size, channels=10, dtype=torch.float32):
    return torch.randn(*size, channels, generator=torch.Generator().manual_seed(1)).to(dtype)


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("size", SIZES, ids=str)
@pytest.mark.parametrize("kind", [MERGING, CONV, STEM])
def test_is_the_steps(kind, size, dtype):
    """With the same bits for any number of threads, any batch, and either layout of a convolution's weight."""
    ours, x = layer(kind, dtype=dtype), map_of(size, dtype=dtype)
    y = cpu_patches.compute(x, ours)
    assert y.dtype == dtype
    assert_near(y, by_steps(x, ours), TOLERANCE[dtype])
    others = [torch.cat([cpu_patches.compute(image[None], ours) for image in x]), cpu_patches.compute(spread(x), ours)]
    if ours.weight.dim() == 4:
        weight = ours.weight.contiguous(memory_format=torch.channels_last)
        others.append(cpu_patches.compute(x, ours._replace(weight=weight)))
    threads = torch.get_num_threads()
    torch.set_num_threads(3)
    others.append(cpu_patches.compute(x, ours))
    torch.set_num_threads(threads)
    assert all(torch.equal(y, other) for other in others)


@pytest.mark.parametrize("channels", [1, 16, 33])
@pytest.mark.parametrize("kind", [MERGING, CONV])
def test_under_autocast(kind, channels):
    """Weights in float32 are rounded on the way."""
    ours, x = layer(kind, channels), map_of((2, 9, 6), channels, torch.bfloat16)
    with torch.autocast("cpu", torch.bfloat16):
        assert_near(cpu_patches.compute(x, ours), by_steps(x, ours), 2 * TOLERANCE[torch.bfloat16])
        assert cpu_patches.compute(x.float(), ours) is None
    assert cpu_patches.compute(x, ours) is None


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("kind", [MERGING, CONV])
def test_what_is_not_finite_stays_where_it_is(kind, value):
    ours, x = layer(kind), map_of((2, 8, 8))
    y = cpu_patches.compute(x, ours)
    x[0, 3, 3, 2] = value
    spoiled, expected = cpu_patches.compute(x, ours), by_steps(x, ours)
    assert torch.equal(spoiled.isfinite(), expected.isfinite())
    assert torch.equal(spoiled[expected.isfinite()], y[expected.isfinite()])


@pytest.mark.parametrize(
    "change", [lambda w: w.mul_(-2), lambda w: w.data.copy_(w.flip(0)), lambda w: w.numpy().fill(1)]
)
@pytest.mark.parametrize("kind", [MERGING, CONV])
def test_nothing_is_kept_of_a_weight(kind, change):
    ours, x = layer(kind), map_of((1, 6, 6))
    cpu_patches.compute(x, ours)
    change(ours.weight)
    assert_near(cpu_patches.compute(x, ours), by_steps(x, ours), TOLERANCE[torch.float32])


NOT_WEIGHTS = {
    "float64": lambda w: w.double(),
    "bfloat16": lambda w: w.bfloat16(),
    "spread": spread,
    "one more": lambda w: torch.cat((w, w[..., :1]), -1),
    "an axis more": lambda w: w[None],
    "no axis": lambda w: torch.zeros(()),
    "no numbers": lambda w: w[:0],
    "on meta": lambda w: w.to("meta"),
    "sparse": lambda w: w.to_sparse(),
    "with a gradient": lambda w: w.clone().requires_grad_(),
    "no tensor": lambda w: w.tolist(),
}


@pytest.mark.parametrize("change", NOT_WEIGHTS)
@pytest.mark.parametrize("kind", [MERGING, CONV])
def test_weights_that_are_not_taken(kind, change):
    ours, x, change = layer(kind), map_of((1, 6, 6)), NOT_WEIGHTS[change]
    for name in ("norm_in", "norm_out"):
        norm = getattr(ours, name)
        if norm is not None:
            for field in ("weight", "bias"):
                replaced = norm._replace(**{field: change(getattr(norm, field))})
                assert cpu_patches.compute(x, ours._replace(**{name: replaced})) is None, (name, field)
    for field in ("weight", "bias"):
        assert cpu_patches.compute(x, ours._replace(**{field: change(getattr(ours, field))})) is None, field


@pytest.mark.parametrize(
    "x",
    [
        torch.randn(2, 3, 4, 10, dtype=torch.float64),
        torch.randn(2, 3, 4, 10, dtype=torch.bfloat16),
        torch.randn(2, 3, 4, 11),
        torch.randn(3, 4, 10),
        torch.randn(0, 3, 4, 10),
        torch.randn(2, 3, 4, 10, requires_grad=True),
    ],
)
@pytest.mark.parametrize("kind", [MERGING, CONV])
def test_maps_that_are_not_taken(kind, x):
    assert cpu_patches.compute(x, layer(kind)) is None
