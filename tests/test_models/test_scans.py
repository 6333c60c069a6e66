"""SS2D on the half map, of which there are no tensors of the official implementation, against its formula."""

import pytest
import torch
from torch import nn
from torch.nn.functional import conv2d, interpolate, layer_norm, silu, softplus
from torch.nn.utils.prune import l1_unstructured

from mmmsv.models.arch import BlockArch
from mmmsv.models.fusion import NormFirstFusion, NormLastFusion, UpsampledNorm
from mmmsv.models.layers import LayerNorm
from mmmsv.models.ms2d import MS2D, SS2D, HalfSS2D, build_scan

from .adapters import LowRank

ROUTES = ("row", "col", "row_rev", "col_rev")


def s6(tokens, scan, index):
    """The recurrence, token by token, of one parameter set over ``(L, D)``."""
    rank, state, _ = scan.token_sizes
    rows = rank + 2 * state
    dt, B, C = (tokens @ scan.x_proj.weight[index * rows : (index + 1) * rows].T).split(scan.token_sizes, -1)
    step = softplus(dt @ scan.dt_weight[index].T + scan.dt_bias[index])
    h, y = torch.zeros(tokens.shape[1], state, dtype=tokens.dtype), []
    for t, u in enumerate(tokens):
        h = (-step[t, :, None] * scan.A_log[index].exp()).exp() * h + (step[t] * u)[:, None] * B[t]
        y.append(h @ C[t] + scan.skip[index] * u)
    return torch.stack(y)


@torch.no_grad()
@pytest.mark.parametrize("kernel", [3, 7])
@pytest.mark.parametrize("stride", [1, 2, 3])
@pytest.mark.parametrize(("fusion", "mode"), [("norm_first", "bilinear"), ("norm_last", "nearest")])
def test_half_ss2d(fusion, mode, stride, kernel):
    torch.manual_seed(0)
    routes = {"full_routes": (), "half_routes": ROUTES}
    arch = BlockArch(state_size=2, **routes, half_kernel=kernel, half_stride=stride, fusion=fusion, se=False)
    scan = build_scan(8, arch).double()
    x = torch.randn(1, 5, 8, 8, dtype=torch.float64)
    inner, gate = (x @ scan.in_proj.weight.T).chunk(2, -1)
    conv = scan.half_conv
    padding = kernel // 2
    half = silu(conv2d(inner.permute(0, 3, 1, 2), conv.weight, conv.bias, stride, padding, groups=16))[0]
    assert half.shape[1:] == (-(-5 // stride), -(-8 // stride))
    total = torch.zeros_like(half)
    for index, route in enumerate(ROUTES):
        walked = half.mT if route.startswith("col") else half
        tokens = walked.flatten(1).T
        y = s6(tokens.flip(0), scan.half_scan, index).flip(0) if "rev" in route else s6(tokens, scan.half_scan, index)
        y = y.T.view_as(walked)
        total += y.mT if route.startswith("col") else y
    normed = layer_norm(total.permute(1, 2, 0), (16,), scan.out_norm.weight, scan.out_norm.bias).permute(2, 0, 1)
    corners = {"align_corners": False} if mode == "bilinear" else {}
    y = interpolate(normed[None], size=(5, 8), mode=mode, **corners).permute(0, 2, 3, 1)
    torch.testing.assert_close(scan(x), (y * silu(gate)) @ scan.out_proj.weight.T, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize(
    ("settings", "kind", "norm"),
    [
        ({}, MS2D, NormFirstFusion),
        ({"fusion": "norm_last"}, MS2D, NormLastFusion),
        ({"half_routes": ()}, SS2D, LayerNorm),
        ({"half_routes": (), "fusion": "norm_last"}, SS2D, LayerNorm),
        ({"full_routes": ()}, HalfSS2D, UpsampledNorm),
    ],
)
def test_kind_of_scan(settings, kind, norm):
    scan = build_scan(8, BlockArch(**settings))
    assert type(scan) is kind
    assert type(scan.out_norm) is norm


@pytest.mark.parametrize("gate", [True, False])
def test_what_others_put_on_in_proj(gate):
    """Hooks see it called, pruning and adapters work."""
    torch.manual_seed(0)
    scan = build_scan(8, BlockArch(gate=gate)).double()
    x = torch.randn(1, 5, 6, 8, dtype=torch.float64)
    calls = []
    handle = scan.in_proj.register_forward_hook(lambda module, inputs, output: calls.append(output.shape[-1]))
    before = scan(x)
    handle.remove()
    assert calls == ([scan.inner] * 2 if gate else [scan.inner])
    adapted = scan.in_proj = LowRank(scan.in_proj).double()
    with torch.no_grad():
        adapted.up.weight.zero_()
    torch.testing.assert_close(scan(x), before)
    nn.init.normal_(adapted.up.weight)
    weight = adapted.layer.weight + adapted.up.weight @ adapted.down.weight
    after = scan(x)
    after.sum().backward()
    assert all(part.weight.grad.abs().max() > 0 for part in (adapted.up, adapted.down))
    scan.in_proj = adapted.layer
    with torch.no_grad():
        scan.in_proj.weight.copy_(weight)
    torch.testing.assert_close(scan(x), after)
    l1_unstructured(scan.in_proj, "weight", 0.5)
    for _ in range(2):
        scan(x).sum().backward()
