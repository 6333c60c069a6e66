"""The ops around the scans agree with their plain twins, in values and all gradients."""

import pytest
import torch

from mmmsv.kernels import BACKENDS, depthwise_conv, gate, layer_norm, merge_scales, use_backend
from mmmsv.kernels.backends.torch import fused as torch_fused
from mmmsv.kernels.dispatch import Kernel

from .fused_inputs import conv_inputs, merge_inputs, normal, results, spread, wide
from .scan_inputs import INTERPRETED, RUNNABLE, SLOW_WHERE_INTERPRETED, TOLERANCE, assert_near, device_of

SIZES = [(2, 5, 9, 33), (1, 1, 1, 3), (3, 7, 4, 40), (1, 16, 17, 130), (9, 2, 3, 16)]  # batch, H, W, D
INTERPRETED_SIZES = [(2, 5, 4, 33), (1, 1, 1, 3), (1, 4, 7, 72)]
CONVS = [  # kernel, stride, activation, residual, bias
    (3, 1, "silu", False, True),
    (3, 1, "gelu", True, True),
    (3, 1, "none", True, False),
    (3, 2, "gelu", False, False),
    (7, 1, "silu", False, False),
    (7, 1, "none", True, True),
    (7, 2, "silu", False, True),
    (7, 3, "none", False, True),
    (7, 7, "gelu", False, True),
]


def with_a_kernel(op):
    """Parametrise over the backends that have a kernel for an op and can run here, and over sizes: few to interpret."""
    have = [name for name in RUNNABLE if isinstance(getattr(BACKENDS[name], op), Kernel)]
    cases = [
        pytest.param(name, size, marks=[pytest.mark.slow] if name in INTERPRETED else [])
        for name in have
        for size in (INTERPRETED_SIZES if name in INTERPRETED else SIZES)
    ]
    none = pytest.param("", (), marks=pytest.mark.skip(reason=f"no backend that can run here has a kernel for {op}"))
    return pytest.mark.parametrize(("backend", "size"), cases or [none])


def dtypes_for(backend):
    return (torch.float32, torch.bfloat16) if backend in INTERPRETED else TOLERANCE


def assert_agree(backend, op, twin, tensors, dtype):
    exact = results(twin, tensors, dtype=torch.float64)
    with use_backend(backend):
        ours = results(op, [None if each is None else each.to(device_of(backend)) for each in tensors])
    assert ours[0].dtype == dtype
    # A gradient of nothing but rounding, as that of a norm over one channel would be, is compared with 1.
    for one, other in zip(ours, exact, strict=True):
        assert_near(
            one.cpu().double() / max(other.abs().max().item(), 1e-2),
            other.double() / max(other.abs().max().item(), 1e-2),
            3 * TOLERANCE[dtype],
        )


@with_a_kernel("depthwise_conv")
@pytest.mark.parametrize(("kernel", "stride", "activation", "residual", "bias"), CONVS)
def test_depthwise_conv(backend, size, kernel, stride, activation, residual, bias):
    options = (stride, activation, residual)
    for dtype in dtypes_for(backend):
        tensors = conv_inputs(size, kernel, bias, dtype)
        assert_agree(
            backend,
            lambda *t: depthwise_conv(*t, *options),
            lambda *t: torch_fused.depthwise_conv(*t, *options),
            tensors,
            dtype,
        )


@with_a_kernel("gate")
@pytest.mark.parametrize("given", [("z", "weight"), ("z",), ("weight",)])
def test_gate(backend, size, given):
    for dtype in dtypes_for(backend):
        z = normal(*size, dtype=dtype, seed=1) if "z" in given else None
        weight = normal(size[0], size[3], dtype=wide(dtype)) if "weight" in given else None
        assert_agree(backend, gate, torch_fused.gate, (normal(*size, dtype=dtype), z, weight), dtype)


@with_a_kernel("layer_norm")
def test_layer_norm(backend, size):
    for dtype in dtypes_for(backend):
        tensors = (normal(*size, dtype=dtype), *merge_inputs(size, 1, 1, dtype)[2:])
        assert_agree(
            backend,
            lambda *t: layer_norm(*t, 1e-5),
            lambda *t: torch_fused.layer_norm(*t, 1e-5, torch.float64),
            tensors,
            dtype,
        )


@with_a_kernel("layer_norm")
def test_layer_norm_gives_another_dtype(backend, size):
    tensors = (normal(*size, dtype=torch.float32), *merge_inputs(size, 1, 1, torch.float32)[2:])
    assert_agree(
        backend,
        lambda *t: layer_norm(*t, 1e-5, torch.bfloat16),
        lambda *t: torch_fused.layer_norm(*t, 1e-5, torch.float64),
        tensors,
        torch.bfloat16,
    )


@pytest.mark.parametrize("backend", SLOW_WHERE_INTERPRETED)
def test_weights_are_read_where_they_lie_and_left_as_they_are(backend):
    """A bias with gaps, and weights whose channels lie innermost already."""
    x, weight, bias = (tensor.to(device_of(backend)) for tensor in conv_inputs((1, 4, 5, 8), 3))
    inner = weight.permute(1, 2, 3, 0).contiguous().permute(3, 0, 1, 2)
    before = inner.clone()
    with use_backend(backend):
        ours = results(lambda *t: depthwise_conv(*t, 1, "gelu", True), (x, inner, bias))
        leaves = [tensor.clone().requires_grad_() for tensor in (x, weight, bias)]
        gaps = depthwise_conv(leaves[0], inner, spread(leaves[2]), 1, "gelu", True)
    exact = results(lambda *t: torch_fused.depthwise_conv(*t, 1, "gelu", True), (x, weight, bias))
    for one, other in zip(ours, exact, strict=True):
        assert_near(one, other, 1e-12)
    assert_near(gaps, exact[0], 1e-12)
    with use_backend(backend), torch.no_grad():
        depthwise_conv(x, inner, bias, 1, "gelu", True)
    assert torch.equal(inner, before)


@pytest.mark.parametrize("backend", SLOW_WHERE_INTERPRETED)
def test_layer_norm_widens_before_it_rounds(backend):
    """Where y is wider than x; weights may be of another dtype."""
    x, weight, bias = normal(1, 2, 3, 16, dtype=torch.bfloat16), normal(16), normal(16, seed=1)
    exact = torch_fused.layer_norm(x.double(), weight, bias, 1e-5, torch.float64)
    given = [tensor.to(device_of(backend)) for tensor in (x, weight, bias)]
    with use_backend(backend):
        y = layer_norm(*given, 1e-5, torch.float32)
    assert y.dtype == torch.float32
    assert_near(y.cpu().double(), exact, 1e-6)


@with_a_kernel("merge_scales")
@pytest.mark.parametrize("norm_first", [True, False])
def test_merge_scales_gives_another_dtype(backend, size, norm_first):
    assert_agree(
        backend,
        lambda *t: merge_scales(*t, 1e-5, norm_first, torch.bfloat16),
        lambda *t: torch_fused.merge_scales(*t, 1e-5, norm_first, torch.float64),
        merge_inputs(size, 1, 2, torch.float32),
        torch.bfloat16,
    )


@with_a_kernel("merge_scales")
def test_the_mean_alone_has_gradients(backend, size):
    tensors = merge_inputs(size, 2, 2, torch.float32)
    assert_agree(
        backend,
        lambda *t: merge_scales(*t, 1e-5, True)[1],
        lambda *t: torch_fused.merge_scales(*t, 1e-5, True, None)[1],
        tensors,
        torch.float32,
    )


@pytest.mark.parametrize("backend", [name for name in RUNNABLE if name in ("cpu", "torch")])
def test_the_gradient_of_the_mean_is_not_lost_in_a_narrow_one(backend):
    """Each token has a small part of it, which a gradient of y in bfloat16 would swallow."""
    tensors = merge_inputs((1, 56, 56, 8), 1, 2, torch.float32)

    def share(merge, dtype):
        leaves = [tensor.detach().to(torch.promote_types(dtype, torch.float32)).requires_grad_() for tensor in tensors]
        y, mean = merge(*leaves, 1e-5, True, dtype)
        both, one = (
            torch.autograd.grad((y, mean), leaves[-1], (torch.ones_like(y), weight * torch.ones_like(mean)), True)[0]
            for weight in (2, 0)
        )
        return both - one

    with use_backend(backend):
        ours = share(merge_scales, torch.bfloat16)
    torch.testing.assert_close(ours.double(), share(torch_fused.merge_scales, torch.float64), rtol=1e-2, atol=0)


@with_a_kernel("merge_scales")
@pytest.mark.parametrize(
    ("norm_first", "routes", "stride"),
    [(True, 3, 2), (True, 1, 1), (True, 2, 3), (True, 1, 7), (False, 1, 2), (False, 1, 3)],
)
def test_merge_scales(backend, size, norm_first, routes, stride):
    for dtype in dtypes_for(backend):
        assert_agree(
            backend,
            lambda *t: merge_scales(*t, 1e-5, norm_first),
            lambda *t: torch_fused.merge_scales(*t, 1e-5, norm_first, None),
            merge_inputs(size, routes, stride, dtype),
            dtype,
        )
