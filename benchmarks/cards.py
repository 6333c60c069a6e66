"""What GPUs can do, by their makers' data sheets, and what share of it was measured."""

from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class Card:
    """A GPU.

    Args:
        name: Of the card.
        capability: Its compute capability, times ten.
        multiprocessors: How many it has.
        clock: Hz, of the boost that it holds under load.
        bandwidth: Bytes a second that a copy reads and writes.
        products: FLOP a second of large products of matrices in ``dtype``.
        dtype: Of autocast.
        registers: Of a multiprocessor, 32 bits each.
        warps: That a multiprocessor can hold.
    """

    name: str
    capability: int
    multiprocessors: int
    clock: float
    bandwidth: float
    products: float
    dtype: torch.dtype = torch.bfloat16
    registers: int = 65536
    warps: int = 64

    @property
    def issue(self) -> float:
        """Instructions of a warp that it can issue in a second: one for each of four schedulers and cycle."""
        return 4 * self.multiprocessors * self.clock


# The copies of H100 and H200 are measured (3.0 and 4.3 TB/s); of the others they are 90 % of the data sheet's.
# Products take 55 to 65 % of the data sheet's.
CARDS = (
    Card("H100", 90, 132, 1.9e9, 3.0e12, 550e12),
    Card("H200", 90, 132, 1.9e9, 4.3e12, 550e12),
    Card("A100", 80, 108, 1.41e9, 1.4e12, 200e12),
    Card("RTX 4090", 89, 128, 2.5e9, 0.91e12, 150e12, warps=48),
    Card("T4", 75, 40, 1.2e9, 0.25e12, 25e12, torch.float16, warps=32),
)
