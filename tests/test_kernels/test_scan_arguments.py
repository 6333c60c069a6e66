"""What the public functions take, and what they say to the rest."""

import pytest
import torch

from mmmsv.kernels import scan2d, selective_scan, use_backend

from .scan_inputs import NAMES, RUNNABLE, SLOW_WHERE_INTERPRETED, MapCase, assert_near, device_of, run, scan_inputs


@pytest.mark.parametrize("backend", RUNNABLE)
@pytest.mark.parametrize(("batch", "length"), [(0, 5), (2, 0), (0, 0)])
def test_empty(backend, batch, length):
    results = run(backend, scan_inputs(batch=batch, length=length, state=2))
    assert results[0].shape == (batch, 6, length)
    for name, gradient in zip(NAMES, results[1:], strict=True):
        assert not gradient.any(), name


@pytest.mark.parametrize("backend", RUNNABLE)
def test_optional_weights(backend):
    """Without D and bias the result is that of zeros, and B and C may leave out the group axis."""
    t = {n: v.detach().to(device_of(backend)).requires_grad_() for n, v in scan_inputs(state=2).items()}
    zeros = torch.zeros_like(t["D"].detach())
    with use_backend(backend):
        bare = selective_scan(t["u"], t["delta"], t["A"], t["B"][:, 0], t["C"][:, 0])
        full = selective_scan(t["u"], t["delta"], t["A"], t["B"], t["C"], zeros, delta_bias=zeros)
        torch.testing.assert_close(bare, full, rtol=0, atol=0)
        bare.sum().backward()
    assert t["u"].grad is not None
    assert t["D"].grad is None


@pytest.mark.parametrize("backend", SLOW_WHERE_INTERPRETED)
def test_strides_do_not_matter(backend):
    """Channels-last, contiguous, and strided inputs give one result, in the layout of u."""
    plain = scan_inputs(dim=8, length=20, state=2, groups=2)
    strided = {
        name: torch.stack((tensor.detach(), tensor.detach()), -1)[..., 0].requires_grad_()
        for name, tensor in plain.items()
    }
    contiguous = {name: tensor.detach().contiguous().requires_grad_() for name, tensor in plain.items()}
    assert not plain["u"].is_contiguous()
    expected = run(backend, plain)
    for layout in (strided, contiguous):
        for ours, theirs in zip(run(backend, layout), expected, strict=True):
            assert_near(ours, theirs, 1e-13)
    with use_backend(backend):
        for layout in (plain, contiguous):
            inputs = {name: tensor.detach().to(device_of(backend)) for name, tensor in layout.items()}
            assert selective_scan(**inputs).stride() == inputs["u"].stride()


@pytest.mark.parametrize(
    ("name", "value", "error", "message"),
    [
        ("u", torch.ones(2, 6), ValueError, r"u has shape \(2, 6\), expected \(batch, D, L\)"),
        ("u", [1.0], TypeError, "u is a list, expected a torch.Tensor"),
        ("u", torch.ones(2, 6, 37, dtype=torch.int64), TypeError, "u is torch.int64, expected one of float16"),
        ("delta", torch.ones(2, 6, 36), ValueError, r"delta has shape \(2, 6, 36\), expected .*\(2, 6, 37\)"),
        (
            "delta",
            torch.ones(2, 6, 37, dtype=torch.float64),
            TypeError,
            "delta is torch.float64 and u is torch.float32",
        ),
        ("A", torch.ones(5, 1), ValueError, r"A has shape \(5, 1\), expected \(D, N\) = \(6, N >= 1\)"),
        ("A", torch.ones(6, 0), ValueError, r"A has shape \(6, 0\), expected"),
        ("B", torch.ones(2, 1, 2, 37), ValueError, r"B has shape \(2, 1, 2, 37\), expected \(batch, G, N, L\)"),
        (
            "B",
            torch.ones(2, 2, 1, 37),
            ValueError,
            r"B .2, 2, 1, 37. and C .2, 1, 1, 37. must have one number of groups",
        ),
        ("C", torch.ones(2, 1, 1, 36), ValueError, r"C has shape \(2, 1, 1, 36\), expected"),
        ("D", torch.ones(6, 1), ValueError, r"D has shape \(6, 1\), expected \(D,\) = \(6,\)"),
        ("delta_softplus", torch.ones(6), TypeError, "delta_softplus is a Tensor, expected True or False"),
        ("delta_bias", torch.ones(5), ValueError, r"delta_bias has shape \(5,\), expected"),
        ("delta_bias", torch.ones(6, device="meta"), ValueError, "delta_bias is on meta and u on cpu"),
    ],
)
def test_bad_input(name, value, error, message):
    inputs = {**scan_inputs(dtype=torch.float32), name: value}
    with pytest.raises(error, match=message):
        selective_scan(**inputs)


def test_groups_must_divide_the_channels():
    inputs = scan_inputs(dim=6, groups=1, dtype=torch.float32)
    inputs["B"] = inputs["C"] = torch.ones(2, 4, 1, 37)
    with pytest.raises(ValueError, match="the 4 groups of B and C do not divide the D = 6 channels of u"):
        selective_scan(**inputs)


MAP = MapCase(dtype=torch.float32, state=2, routes=("row", "col"), sets=2)  # (2, 5, 3, 6), R = 2, N = 2


@pytest.mark.parametrize(
    ("name", "value", "error", "message"),
    [
        ("x", torch.ones(2, 5, 6), ValueError, r"x has shape \(2, 5, 6\), expected \(batch, H, W, D\)"),
        ("x", "photo.jpg", TypeError, "x is a str, expected a torch.Tensor"),
        ("x", torch.ones(2, 5, 3, 6, dtype=torch.uint8), TypeError, "x is torch.uint8, expected one of float16"),
        ("dt", torch.ones(2, 5, 3, 2), ValueError, r"dt has shape \(2, 5, 3, 2\), .* \(2, 5, 3, 2, 2\) for x .*W_dt"),
        ("dt", torch.ones(2, 5, 3, 2, 2).half(), TypeError, "dt is torch.float16 and x is torch.float32; cast one"),
        (
            "B",
            torch.ones(2, 5, 3, 2, 3),
            ValueError,
            r"B has shape .*\(batch, H, W, S, N\) = \(2, 5, 3, 2, 2\)",
        ),
        ("C", torch.ones(2, 3, 5, 2, 2), ValueError, r"C has shape \(2, 3, 5, 2, 2\), expected"),
        ("W_dt", torch.ones(2, 6), ValueError, r"W_dt has shape \(2, 6\), expected \(S, D, R\) = \(2, 6, R >= 1\)"),
        ("W_dt", torch.ones(2, 6, 0), ValueError, r"W_dt has shape \(2, 6, 0\), expected"),
        ("b_dt", torch.ones(6), ValueError, r"b_dt has shape \(6,\), expected \(S, D\) = \(2, 6\) for A"),
        (
            "A",
            torch.ones(2, 5, 2),
            ValueError,
            r"A has shape \(2, 5, 2\), expected .* = \(S >= 1, 6, N >= 1\)",
        ),
        ("A", torch.ones(3, 6, 2), ValueError, r"A \(3, 6, 2\) holds 3 parameter sets, expected 1, or one for each"),
        ("Dskip", torch.ones(2, 7), ValueError, r"Dskip has shape \(2, 7\), expected"),
        ("Dskip", torch.ones(2, 6, device="meta"), ValueError, "Dskip is on meta and x on cpu"),
        ("routes", "row", TypeError, "routes is 'row', expected a tuple"),
        ("routes", (), ValueError, "routes is empty, expected one or more of"),
        ("routes", ("row", "diagonal"), ValueError, "routes holds 'diagonal', expected one or more of .*'row', 'col'"),
        ("carry", True, ValueError, "holds 2 parameter sets, expected 1, since the state is carried over"),
        ("carry", 1, TypeError, "carry is a int, expected True or False"),
        ("merge", None, TypeError, "merge is a NoneType, expected True or False"),
        ("dtype", "float32", TypeError, "dtype is 'float32', expected one of float16"),
        ("dtype", torch.float16, ValueError, "dtype is torch.float16, expected torch.float32 for x in torch.float32"),
        ("dtype", torch.float64, ValueError, "dtype is torch.float64, expected torch.float32 for x in torch.float32"),
    ],
)
def test_bad_map(name, value, error, message):
    with pytest.raises(error, match=f"^scan2d: .*{message}"):
        scan2d(**{**MAP.inputs(), **MAP.options, name: value})
