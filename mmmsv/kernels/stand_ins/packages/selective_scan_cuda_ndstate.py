"""Stands in for VMamba's compiled module of this name, whose states are one number (N = 1) and have no axis."""

from torch import Tensor

from mmmsv.kernels.stand_ins import log, scan

log.log_once("selective_scan_cuda_ndstate", "mmmsv.kernels.selective_scan")


def fwd(
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None,
    delta_bias: Tensor | None,
    delta_softplus: bool,
    nrows: int,
) -> list[Tensor]:
    """Return y, and x for :func:`bwd`, from an A ``(D,)``, B and C ``(batch, G, L)``; ``nrows`` is not used."""
    A, B, C = _with_state("fwd", A, B, C)
    return [*scan.forward(u, delta, A, B, C, D, delta_bias, delta_softplus)]


def bwd(
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None,
    delta_bias: Tensor | None,
    dout: Tensor,
    x: Tensor,
    delta_softplus: bool,
    nrows: int,
) -> list[Tensor | None]:
    """Return the gradients of u, delta, A, B, C, D and delta_bias from that of y and the x of :func:`fwd`."""
    A, B, C = _with_state("bwd", A, B, C)
    du, ddelta, dA, dB, dC, *others = scan.backward(u, delta, A, B, C, D, delta_bias, dout, x, delta_softplus)
    return [du, ddelta, dA.squeeze(1), dB.squeeze(2), dC.squeeze(2), *others]


def _with_state(op: str, A: Tensor, B: Tensor, C: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    if A.dim() != 1 or B.dim() != 3 or C.dim() != 3:
        shapes = ", ".join(f"{name} {tuple(each.shape)}" for name, each in (("A", A), ("B", B), ("C", C)))
        raise ValueError(f"{op}: shapes are {shapes}, expected A (D,), B and C (batch, G, L)")
    return A.unsqueeze(1), B.unsqueeze(2), C.unsqueeze(2)
