"""What the ops around the scans refuse, and what they say then."""

import pytest
import torch

from mmmsv.kernels import depthwise_conv, gate, layer_norm, merge_scales

X, W, B = torch.ones(2, 5, 7, 6), torch.ones(6, 1, 3, 3), torch.ones(6)
HALF, NORM = torch.ones(2, 3, 3, 4, 6), torch.ones(6)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: depthwise_conv([1], W), TypeError, "depthwise_conv: x is a list, expected a torch.Tensor"),
        (lambda: depthwise_conv(X.int(), W), TypeError, "x is torch.int32, expected one of float16"),
        (lambda: depthwise_conv(X[0], W), ValueError, r"x has shape \(5, 7, 6\), expected \(batch, H, W, D\)"),
        (
            lambda: depthwise_conv(X, W[:5]),
            ValueError,
            r"weight has shape \(5, 1, 3, 3\), expected \(D, 1, K, K\) = \(6, 1, K, K\) with K = 3 or 7, for x \(2, 5",
        ),
        (lambda: depthwise_conv(X, torch.ones(6, 1, 5, 5)), ValueError, "with K = 3 or 7"),
        (lambda: depthwise_conv(X, torch.ones(6, 1, 3, 7)), ValueError, "with K = 3 or 7"),
        (lambda: depthwise_conv(X, W, B[1:]), ValueError, r"bias has shape \(5,\), expected \(6,\) for x"),
        (lambda: depthwise_conv(X, W, B, 0), ValueError, r"stride is 0, expected a whole number in 1\.\.64"),
        (lambda: depthwise_conv(X, W, B, 1.0), ValueError, "stride is 1.0, expected a whole number"),
        (lambda: depthwise_conv(X, W, B, 1, "relu"), ValueError, r"activation is 'relu', expected one of \('none',"),
        (lambda: depthwise_conv(X, W, B, 2, "silu", True), ValueError, "residual needs a stride of 1, given is 2"),
        (lambda: depthwise_conv(X, W, B, 1, "silu", 1), TypeError, "residual is a int, expected True or False"),
        (
            lambda: gate(X, X[:, 1:]),
            ValueError,
            r"gate: z has shape \(2, 4, 7, 6\), expected \(2, 5, 7, 6\) for y \(2, 5, 7, 6\)",
        ),
        (lambda: gate(X, X, B), ValueError, r"gate: weight has shape \(6,\), expected \(2, 6\) for y \(2, 5, 7, 6\)"),
        (lambda: gate(X, X.to("meta")), ValueError, "gate: z is on meta and y on cpu; move both to one device"),
        (
            lambda: merge_scales(X, HALF[0], NORM, NORM, 1e-5, True),
            ValueError,
            r"half has shape \(3, 3, 4, 6\), expected \(batch, routes, h, w, D\) = \(2, routes, h, w, 6\) for full",
        ),
        (
            lambda: merge_scales(X, HALF, NORM, NORM, 1e-5, False),
            ValueError,
            "half has 3 routes, expected one, their sum",
        ),
        (
            lambda: merge_scales(X, HALF[:, :, :0], NORM, NORM, 1e-5, True),
            ValueError,
            "expected one route and one token",
        ),
        (lambda: merge_scales(X, HALF, NORM[1:], NORM, 1e-5, True), ValueError, r"weight has shape \(5,\), expected"),
        (
            lambda: layer_norm(X[0], NORM, NORM, 1e-5),
            ValueError,
            r"x has shape \(5, 7, 6\), expected \(batch",
        ),
        (
            lambda: layer_norm(X, NORM, NORM[1:], 1e-5),
            ValueError,
            r"layer_norm: bias has shape \(5,\), expected",
        ),
        (
            lambda: layer_norm(X, NORM, NORM, 1e-5, torch.int64),
            TypeError,
            "dtype is torch.int64, expected one of",
        ),
    ],
)
def test_bad_input(call, error, message):
    with pytest.raises(error, match=message):
        call()
