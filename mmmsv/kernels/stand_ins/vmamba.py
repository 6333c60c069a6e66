"""The calls that VMamba and its successors make of their compiled scans."""

from torch import Tensor

from . import scan


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
    """Return y, and x for :func:`bwd`; ``nrows``, the channels of a CUDA thread block, is not used."""
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
    return [*scan.backward(u, delta, A, B, C, D, delta_bias, dout, x, delta_softplus)]
