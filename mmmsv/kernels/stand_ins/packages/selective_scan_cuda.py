"""Stands in for the compiled module of mamba-ssm, with the calls that its releases, Vim and LocalMamba make of it."""

import torch
from torch import Tensor
from torch.nn import functional as F

from mmmsv.kernels.argument_checks import check_shape, check_tensors, state_dtype
from mmmsv.kernels.stand_ins import log, scan

log.log_once("selective_scan_cuda", "mmmsv.kernels.selective_scan")


@torch.no_grad()
def fwd(
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None,
    z: Tensor | None,
    delta_bias: Tensor | None,
    delta_softplus: bool,
) -> list[Tensor]:
    """Return y before the gate, x for :func:`bwd`, and with ``z`` also y behind the gate."""
    y, x = scan.forward(u, delta, A, B, C, D, delta_bias, delta_softplus)
    return [y, x] if z is None else [y, x, _gated(y, z)]


@torch.no_grad()
def bwd(
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None,
    z: Tensor | None,
    delta_bias: Tensor | None,
    dout: Tensor,
    x: Tensor,
    out: Tensor | None,
    dz: Tensor | None,
    delta_softplus: bool,
    recompute_out_z: bool,
) -> list[Tensor | None]:
    """Return the gradients of u, delta, A, B, C, D, delta_bias; with ``z`` also its own and, if asked, y again.

    ``dout`` is the gradient of what :func:`fwd` returns last beside x, ``out`` the first and ``x`` the second of its
    results. The gradient of z is written to ``dz`` where that is given.
    """
    op = "bwd"
    if z is None:
        return [*scan.backward(u, delta, A, B, C, D, delta_bias, dout, x, delta_softplus)]
    if out is None:
        raise TypeError(f"{op}: out is None, expected the first result of fwd, since z is given")
    check_tensors(op, {"u": u, "z": z, "dout": dout, "out": out})
    for name, tensor in (("z", z), ("dout", dout), ("out", out)):
        check_shape(op, name, tensor, tuple(u.shape), "u", u)
    dtype = state_dtype(u)
    wide, dwide = z.to(dtype), dout.to(dtype)
    of_z = torch.ops.aten.silu_backward(dwide * out.to(dtype), wide).to(z.dtype)
    dy = (dwide * F.silu(wide)).to(u.dtype)
    gradients = scan.backward(u, delta, A, B, C, D, delta_bias, dy, x, delta_softplus)
    results = [*gradients, of_z if dz is None else dz.copy_(of_z)]
    return [*results, _gated(out, z)] if recompute_out_z else results


def _gated(y: Tensor, z: Tensor) -> Tensor:
    check_tensors("fwd", {"u": y, "z": z})
    check_shape("fwd", "z", z, tuple(y.shape), "u", y)
    dtype = state_dtype(y)
    return (y.to(dtype) * F.silu(z.to(dtype))).to(y.dtype)
