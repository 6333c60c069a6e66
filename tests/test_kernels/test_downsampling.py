"""Layers that lower the resolution in one call give what their steps give, and leave alone what they do not take."""

import pytest
import torch

from mmmsv.kernels.backends.cpu import downsampling as cpu_downsampling

from .block_inputs import on_any_processor
from .downsampling_inputs import CONV, MERGING, STEM, TOLERANCE, by_steps, layer, map_of
from .fused_inputs import needs_library, spread
from .scan_inputs import assert_near

pytestmark = needs_library

# Two with more rows than are computed at once.
SIZES = [(1, 1, 1), (2, 6, 4), (3, 5, 7), (1, 2, 9), (1, 57, 41), (9, 16, 14)]


@pytest.fixture(autouse=True, scope="module")
def take_downsampling(guarded_scratch):
    with on_any_processor():
        yield


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("size", SIZES, ids=str)
@pytest.mark.parametrize("kind", [MERGING, CONV, STEM])
def test_is_the_steps(set_threads, kind, size, dtype):
    """With the same bits for any number of threads, any batch, and either layout of a convolution's weight."""
    ours, x = layer(kind, dtype=dtype), map_of(size, dtype=dtype)
    y = cpu_downsampling.compute(x, ours)
    assert y.dtype == dtype
    assert_near(y, by_steps(x, ours), TOLERANCE[dtype])
    others = [
        torch.cat([cpu_downsampling.compute(image[None], ours) for image in x]),
        cpu_downsampling.compute(spread(x), ours),
    ]
    if ours.weight.dim() == 4:
        weight = ours.weight.contiguous(memory_format=torch.channels_last)
        others.append(cpu_downsampling.compute(x, ours._replace(weight=weight)))
    set_threads(3)
    others.append(cpu_downsampling.compute(x, ours))
    assert all(torch.equal(y, other) for other in others)


@pytest.mark.parametrize("channels", [1, 16, 33])
@pytest.mark.parametrize("kind", [MERGING, CONV])
def test_under_autocast(kind, channels):
    """Weights in float32 are rounded on the way."""
    ours, x = layer(kind, channels), map_of((2, 9, 6), channels, torch.bfloat16)
    with torch.autocast("cpu", torch.bfloat16):
        assert_near(cpu_downsampling.compute(x, ours), by_steps(x, ours), 2 * TOLERANCE[torch.bfloat16])
        assert cpu_downsampling.compute(x.float(), ours) is None
    assert cpu_downsampling.compute(x, ours) is None


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("kind", [MERGING, CONV])
def test_what_is_not_finite_stays_where_it_is(kind, value):
    ours, x = layer(kind), map_of((2, 8, 8))
    y = cpu_downsampling.compute(x, ours)
    x[0, 3, 3, 2] = value
    spoiled, expected = cpu_downsampling.compute(x, ours), by_steps(x, ours)
    assert torch.equal(spoiled.isfinite(), expected.isfinite())
    assert torch.equal(spoiled[expected.isfinite()], y[expected.isfinite()])


@pytest.mark.parametrize(
    "change", [lambda w: w.mul_(-2), lambda w: w.data.copy_(w.flip(0)), lambda w: w.numpy().fill(1)]
)
@pytest.mark.parametrize("kind", [MERGING, CONV])
def test_nothing_is_kept_of_a_weight(kind, change):
    ours, x = layer(kind), map_of((1, 6, 6))
    cpu_downsampling.compute(x, ours)
    change(ours.weight)
    assert_near(cpu_downsampling.compute(x, ours), by_steps(x, ours), TOLERANCE[torch.float32])


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
                assert cpu_downsampling.compute(x, ours._replace(**{name: replaced})) is None, (name, field)
    for field in ("weight", "bias"):
        assert cpu_downsampling.compute(x, ours._replace(**{field: change(getattr(ours, field))})) is None, field


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
    assert cpu_downsampling.compute(x, layer(kind)) is None
