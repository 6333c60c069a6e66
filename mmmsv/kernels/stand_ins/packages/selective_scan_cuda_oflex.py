"""Stands in for VMamba's compiled module of this name, whose result may be in float32."""

from torch import Tensor

from mmmsv.kernels.stand_ins import log, scan
from mmmsv.kernels.stand_ins.vmamba import bwd

__all__ = ["bwd", "fwd"]

log.log_once("selective_scan_cuda_oflex", "mmmsv.kernels.selective_scan")


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
    out_float: bool,
) -> list[Tensor]:
    """Return y, in float32 where ``out_float`` is set, and x for :func:`bwd`; ``nrows`` is not used."""
    return [*scan.forward(u, delta, A, B, C, D, delta_bias, delta_softplus, out_float)]
