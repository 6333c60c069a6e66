"""What a backend is."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from .scan_arguments import Scan1d, Scan2d


@dataclass(frozen=True)
class Backend:
    """One way to compute the ops.

    Args:
        why_not: Says in one clause why the backend cannot run on a device; None where it can.
        selective_scan: Computes y and the states before every 64th token.
        selective_scan_backward: Computes, from dy and those states, the gradients of the seven tensors in their order;
            an empty tensor where a weight was not given.
        scan2d: As ``selective_scan``, for the 2-D op.
        scan2d_backward: As ``selective_scan_backward``, for its eight tensors.
    """

    why_not: Callable[[torch.device], str | None]
    selective_scan: Callable[[Scan1d], tuple[Tensor, Tensor]]
    selective_scan_backward: Callable[[Scan1d, Tensor, Tensor], tuple[Tensor, ...]]
    scan2d: Callable[[Scan2d], tuple[Tensor, Tensor]]
    scan2d_backward: Callable[[Scan2d, Tensor, Tensor], tuple[Tensor, ...]]
