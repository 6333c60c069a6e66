"""cross_scan and cross_merge against loops over indices, and each as the transpose of the other."""

import itertools
import re

import pytest
import torch
from torch import Tensor

from mmmsv.kernels import cross_merge, cross_scan
from mmmsv.kernels.vmamba import CrossMerge, CrossScan

LAYOUTS = list(itertools.product((True, False), repeat=2))


def places(scans: int, height: int, width: int) -> list[list[tuple[int, int]]]:
    """The tokens (row, column) that each of the four routes visits, in its order."""
    by_row = [(row, column) for row in range(height) for column in range(width)]
    by_column = [(row, column) for column in range(width) for row in range(height)]
    if scans == 0:
        return [by_row, by_column, by_row[::-1], by_column[::-1]]
    if scans == 1:
        return [by_row] * 4
    if scans == 2:
        return [by_row, by_row, by_row[::-1], by_row[::-1]]
    # Where a token of the turned map was before the map was turned, counter-clockwise.
    turned = [(row, column) for column in reversed(range(width)) for row in range(height)]
    return [by_row, turned, by_row[::-1], turned[::-1]]


def walked(maps: Tensor, scans: int) -> Tensor:
    """``(B, 4, C, L)`` of a map for each route, ``(B, 4, C, H, W)``, token by token."""
    y = maps.new_empty(*maps.shape[:3], maps.shape[3] * maps.shape[4])
    for route, order in enumerate(places(scans, *maps.shape[3:])):
        for token, (row, column) in enumerate(order):
            y[:, route, :, token] = maps[:, route, :, row, column]
    return y


def laid_back(y: Tensor, scans: int) -> Tensor:
    """The inverse of :func:`walked`: ``(B, 4, C, L)`` for sequences ``(B, 4, C, H, W)``, L in the order of rows."""
    width = y.shape[4]
    sequences, maps = y.flatten(3), torch.empty_like(y.flatten(3))
    for route, order in enumerate(places(scans, *y.shape[3:])):
        for token, (row, column) in enumerate(order):
            maps[:, route, :, row * width + column] = sequences[:, route, :, token]
    return maps


def arranged(x: Tensor, channel_first: bool, routes: bool) -> Tensor:
    """Move the channels, and the routes if there are any, behind the tokens unless they come first."""
    if channel_first:
        return x
    return x.movedim((1, 2), (-2, -1)) if routes else x.movedim(1, -1)


def draw(*shape: int, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64).to(dtype)


@pytest.mark.parametrize("scans", range(4))
@pytest.mark.parametrize(("first_in", "first_out"), LAYOUTS)
@pytest.mark.parametrize("size", [(3, 5), (4, 1)])
def test_against_loops(scans, first_in, first_out, size):
    x, maps, options = draw(2, 3, *size), draw(2, 4, 3, *size), {"scans": scans}
    layout = {"in_channel_first": first_in, "out_channel_first": first_out}

    y = cross_scan(arranged(x, first_in, routes=False), **layout, **options)
    assert torch.equal(y, arranged(walked(x.unsqueeze(1).expand(-1, 4, -1, -1, -1), scans), first_out, routes=True))
    y = cross_scan(arranged(maps, first_in, routes=True), one_by_one=True, **layout, **options)
    assert torch.equal(y, arranged(walked(maps, scans), first_out, routes=True))
    assert y.is_contiguous()

    merged = cross_merge(arranged(maps, first_out, routes=True), **layout, **options)
    torch.testing.assert_close(merged, arranged(laid_back(maps, scans).sum(1), first_in, routes=False))
    assert merged.is_contiguous()
    merged = cross_merge(arranged(maps, first_out, routes=True), one_by_one=True, **layout, **options)
    assert torch.equal(merged, arranged(laid_back(maps, scans), first_in, routes=True))
    assert merged.is_contiguous()


@pytest.mark.parametrize("scans", range(4))
@pytest.mark.parametrize("one_by_one", [False, True])
def test_each_is_the_gradient_of_the_other(scans, one_by_one):
    """<scan(x), y> = <x, merge(y)>, and autograd goes back through one as the other goes forward."""
    x = draw(2, *((4,) if one_by_one else ()), 3, 3, 5).requires_grad_()
    y = draw(2, 4, 3, 3, 5).mul(2).requires_grad_()
    options = {"one_by_one": one_by_one, "scans": scans}
    walks, merged = cross_scan(x, **options), cross_merge(y, **options)
    torch.testing.assert_close((walks * y.flatten(3)).sum(), (x.flatten(-2) * merged).sum())

    (dx,) = torch.autograd.grad(walks, x, y.flatten(3))
    (dy,) = torch.autograd.grad(merged, y, x.flatten(-2))
    torch.testing.assert_close(dx.flatten(-2), merged)
    torch.testing.assert_close(dy.flatten(3), walks)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.int64])
def test_every_dtype_stays(dtype):
    x = torch.arange(30).view(1, 2, 3, 5).to(dtype)
    y = cross_scan(x)
    assert (y.dtype, cross_merge(y.unflatten(3, (3, 5))).dtype) == (dtype, dtype)
    assert torch.equal(cross_merge(y.unflatten(3, (3, 5))), 4 * x.flatten(2))


@pytest.mark.parametrize("shape", [(0, 3, 4, 5), (2, 3, 0, 5), (2, 0, 4, 5)])
@pytest.mark.parametrize("scans", range(4))
def test_empty_maps(shape, scans):
    batch, channels, height, width = shape
    y = cross_scan(draw(*shape), scans=scans)
    assert y.shape == (batch, 4, channels, height * width)
    assert cross_merge(y.view(batch, 4, channels, height, width), scans=scans).shape == (*shape[:2], height * width)


def test_older_calls():
    x = draw(2, 3, 4, 5)
    assert torch.equal(CrossScan.apply(x), cross_scan(x))
    y = draw(2, 4, 3, 4, 5)
    assert torch.equal(CrossMerge.apply(y), cross_merge(y))


@pytest.mark.parametrize("force_torch", [False, True])
def test_what_callers_pass(force_torch):
    """The options by name, or all of them by place."""
    x = draw(2, 3, 4, 5)
    assert torch.equal(cross_scan(x, True, True, False, 0, force_torch), cross_scan(x))
    assert torch.equal(cross_scan(x.mT, force_torch=force_torch), cross_scan(x.mT.contiguous()))


@pytest.mark.parametrize(
    ("call", "given", "options", "error", "text"),
    [
        (cross_scan, [1.0], {}, TypeError, "cross_scan: x is a list, expected a torch.Tensor"),
        (cross_scan, (2, 3, 4), {}, ValueError, "cross_scan: x has shape (2, 3, 4), expected (B, C, H, W)"),
        (cross_scan, (2, 4, 3, 5), {"one_by_one": True}, ValueError, "expected (B, 4, C, H, W)"),
        (
            cross_scan,
            (2, 4, 3, 5, 5),
            {"one_by_one": True, "in_channel_first": False},
            ValueError,
            "cross_scan: x has shape (2, 4, 3, 5, 5), expected (B, H, W, 4, C)",
        ),
        (cross_scan, (2, 3, 4, 5), {"scans": 4}, ValueError, "scans is 4, expected one of (0, 1, 2, 3)"),
        (cross_scan, (2, 3, 4, 5), {"scans": True}, ValueError, "scans is True, expected one of (0, 1, 2, 3)"),
        (cross_scan, (2, 3, 4, 5), {"force_torch": 0}, TypeError, "force_torch is a int, expected True or False"),
        (
            cross_merge,
            (2, 4, 3, 20),
            {},
            ValueError,
            "cross_merge: y has shape (2, 4, 3, 20), expected (B, 4, C, H, W)",
        ),
        (cross_merge, (2, 3, 4, 5, 3), {}, ValueError, "expected (B, 4, C, H, W)"),
        (cross_merge, (2, 4, 5, 3, 3), {"out_channel_first": False}, ValueError, "expected (B, H, W, 4, C)"),
        (cross_merge, (2, 4, 3, 4, 5), {"scans": "cross"}, ValueError, "scans is 'cross', expected one of"),
    ],
)
def test_what_is_refused(call, given, options, error, text):
    with pytest.raises(error, match=re.escape(text)):
        call(given if isinstance(given, list) else torch.zeros(given), **options)
