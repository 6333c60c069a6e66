"""A block written with 1-D scans, as published, and as one call of scan2d, converted as docs/use_the_scan.md says."""

import copy

import pytest
import torch
from torch import Tensor, nn

from benchmarks.vss_block import Block, ConvertedBlock, FlippedBlock


def results(network: nn.Module, x: Tensor) -> list[Tensor]:
    """Return what a network makes of x, and the gradients of x and of all parameters."""
    x = x.clone().requires_grad_()
    y = network(x)
    return [y, *torch.autograd.grad((y * y.detach().cos()).sum(), [x, *network.parameters()])]


@pytest.mark.parametrize(
    ("published", "scans"),
    [(Block, 0), (Block, 1), (Block, 2), (FlippedBlock, 0)],
    ids=["four routes", "one", "two", "flips"],
)
@pytest.mark.parametrize("state", [1, 4])
def test_same_numbers_with_the_same_parameters(published, scans, state):
    network = nn.Sequential(*(published(4, 2, state, scans, torch.float64) for _ in range(2)))
    converted = copy.deepcopy(network)
    for block in converted:
        block.__class__ = ConvertedBlock
    assert converted.state_dict().keys() == network.state_dict().keys()
    x = torch.randn(2, 5, 3, 4, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    for got, expected in zip(results(converted, x), results(network, x), strict=True):
        torch.testing.assert_close(got, expected, rtol=0, atol=1e-10 * max(1, expected.abs().max().item()))
