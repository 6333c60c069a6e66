"""Walking a map along each route, and laying the walks back."""

import pytest
import torch

from mmmsv.kernels.routes import ROUTES, roll_up, unroll

MAP = torch.tensor([[[[0.0], [1.0], [2.0]], [[3.0], [4.0], [5.0]]]])  # (1, 2, 3, 1), numbered row by row


@pytest.mark.parametrize(
    ("route", "walk"),
    [
        ("row", [0, 1, 2, 3, 4, 5]),
        ("col", [0, 3, 1, 4, 2, 5]),
        ("row_rev", [5, 4, 3, 2, 1, 0]),
        ("col_rev", [5, 2, 4, 1, 3, 0]),
    ],
)
def test_order(route, walk):
    tokens = unroll(MAP, (route,))
    assert tokens.flatten().tolist() == walk
    assert torch.equal(roll_up(tokens, (route,), 2, 3), MAP)


def test_several_routes_are_concatenated_and_summed():
    tokens = unroll(MAP, ROUTES)
    assert tokens.shape == (1, 24, 1)
    assert torch.equal(tokens[:, 6:12], unroll(MAP, ("col",)))
    assert torch.equal(roll_up(tokens, ROUTES, 2, 3), 4 * MAP)


def test_the_row_route_copies_nothing():
    assert unroll(MAP, ("row",)).data_ptr() == MAP.data_ptr()
