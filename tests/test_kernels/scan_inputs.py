"""Inputs for the scan tests."""

import torch
from torch import Tensor

NAMES = ("u", "delta", "A", "B", "C", "D", "delta_bias")


def scan_inputs(
    batch: int = 2,
    dim: int = 6,
    length: int = 37,
    state: int = 1,
    groups: int = 1,
    dtype: torch.dtype = torch.float64,
    seed: int = 0,
) -> dict[str, Tensor]:
    """Random arguments of selective_scan by name, u and delta channels-last in memory; A, D, bias at least float32."""
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator, dtype=torch.float64)

    wide = torch.promote_types(dtype, torch.float32)
    inputs = {
        "u": normal(batch, length, dim).transpose(1, 2).to(dtype),
        "delta": 2 * normal(batch, length, dim).transpose(1, 2).to(dtype),
        "A": -normal(dim, state).exp().to(wide),
        "B": normal(batch, groups, state, length).to(dtype),
        "C": normal(batch, groups, state, length).to(dtype),
        "D": normal(dim).to(wide),
        "delta_bias": normal(dim).to(wide),
    }
    return {name: tensor.requires_grad_() for name, tensor in inputs.items()}
