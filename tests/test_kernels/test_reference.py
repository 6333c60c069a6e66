"""The oracle against the recurrence written out in scalars."""

import pytest
import torch

from mmmsv.kernels import scan2d, selective_scan, use_backend

from .scan_inputs import MapCase, scan_inputs

# Places (row, column) of a 2 x 3 map, in the order of each route.
ORDER = {
    "row": [(0, 0), (0, 1), (0, 2), (1, 0), (1, 1), (1, 2)],
    "col": [(0, 0), (1, 0), (0, 1), (1, 1), (0, 2), (1, 2)],
    "row_rev": [(1, 2), (1, 1), (1, 0), (0, 2), (0, 1), (0, 0)],
    "col_rev": [(1, 2), (0, 2), (1, 1), (0, 1), (1, 0), (0, 0)],
}


def test_reference_is_the_recurrence():
    """The oracle itself, against the formula written out in scalars."""
    t = {name: tensor.detach() for name, tensor in scan_inputs(batch=2, dim=4, length=5, state=3, groups=2).items()}
    with use_backend("reference"):
        y = selective_scan(**t, delta_softplus=True)
    for b in range(2):
        for d in range(4):
            h = [0.0] * 3
            for i in range(5):
                step = torch.log1p(torch.exp(t["delta"][b, d, i] + t["delta_bias"][d]))
                h = [
                    torch.exp(step * t["A"][d, n]) * h[n] + step * t["B"][b, d // 2, n, i] * t["u"][b, d, i]
                    for n in range(3)
                ]
                expected = sum(t["C"][b, d // 2, n, i] * h[n] for n in range(3)) + t["D"][d] * t["u"][b, d, i]
                assert y[b, d, i].item() == pytest.approx(expected.item(), rel=1e-12)


@pytest.mark.parametrize(
    "case",
    [
        MapCase(size=(2, 3), dim=3, state=2, routes=("row_rev", "col", "col_rev"), carry=True, merge=False),
        MapCase(size=(2, 3), dim=3, state=2, routes=("row_rev", "col", "col_rev"), carry=True),
        MapCase(size=(2, 3), dim=3, state=2, routes=("row", "col", "row_rev", "col_rev"), sets=4),
        MapCase(size=(2, 3), dim=3, state=2, routes=("col", "col_rev"), merge=False),
    ],
)
def test_reference_of_maps_is_the_recurrence(case):
    t = {name: tensor.detach() for name, tensor in case.inputs().items()}
    with use_backend("reference"):
        y = scan2d(**t, **case.options)
    expected = torch.zeros(case.batch, len(case.routes), *case.size, case.dim, dtype=torch.float64)
    for b in range(case.batch):
        for d in range(case.dim):
            h = torch.zeros(case.state, dtype=torch.float64)
            for k, route in enumerate(case.routes):
                s = k if case.sets > 1 else 0
                if not case.carry:
                    h = torch.zeros_like(h)
                for i, j in ORDER[route]:
                    x, low_rank = t["x"][b, i, j, d], t["dt"][b, i, j, s]
                    step = torch.log1p(torch.exp(t["W_dt"][s, d] @ low_rank + t["b_dt"][s, d]))
                    h = torch.exp(step * t["A"][s, d]) * h + step * t["B"][b, i, j, s] * x
                    expected[b, k, i, j, d] = t["C"][b, i, j, s] @ h + t["Dskip"][s, d] * x
    torch.testing.assert_close(y, expected.sum(1) if case.merge else expected, rtol=0, atol=1e-12)
