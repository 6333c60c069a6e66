"""The oracle: the recurrence as it is written, token by token. Slow; every other backend is tested against it."""

import torch
from torch import Tensor
from torch.nn.functional import softplus

from ...scan_arguments import CHUNK, Scan1d
from ..torch import unrolled


def selective_scan(scan: Scan1d) -> tuple[Tensor, Tensor]:
    """Compute y and the states before every 64th token."""
    u, _, A, _, _, D, *_ = scan
    step, B, C = _prepare(scan)
    states = _states(step, u.to(A.dtype), A, B)
    y = (states[..., 1:] * C).sum(2)
    if D is not None:
        y = y + D[:, None] * u
    return torch.empty_like(u).copy_(y), states[..., :-1:CHUNK].permute(0, 3, 2, 1).contiguous()


def selective_scan_backward(scan: Scan1d, dy: Tensor, states: Tensor) -> tuple[Tensor, ...]:
    """Compute the gradients of the seven tensors, in their order; empty where a weight was not given.

    Computes all states again from the first token on: an oracle leaves nothing to others.
    """
    u, delta, A, B, C, D, delta_bias, delta_softplus = scan
    groups = B.shape[1]
    step, B_, C_ = _prepare(scan)
    u_, dy_ = u.to(A.dtype), dy.to(A.dtype)
    states = _states(step, u_, A, B_)
    before, after = states[..., :-1], states[..., 1:]

    # g_t = dL/dh_t = C_t dy_t + exp(step_{t+1} A) g_{t+1}
    g = dy_.unsqueeze(2) * C_
    for t in range(u.shape[2] - 2, -1, -1):
        g[..., t] += torch.exp(step[:, :, None, t + 1] * A) * g[..., t + 1]

    dexponent = g * before * torch.exp(step.unsqueeze(2) * A[..., None])
    gB = (g * B_).sum(2)
    du = gB * step
    if D is not None:
        du = du + D[:, None] * dy_
    ddelta = (dexponent * A[..., None]).sum(2) + gB * u_
    if delta_softplus:
        ddelta = ddelta * torch.sigmoid(_biased(scan))
    dB = (g * (step * u_).unsqueeze(2)).unflatten(1, (groups, -1)).sum(2)
    dC = (after * dy_.unsqueeze(2)).unflatten(1, (groups, -1)).sum(2)
    return (
        torch.empty_like(u).copy_(du),
        torch.empty_like(delta).copy_(ddelta),
        torch.empty_like(A).copy_((dexponent * step.unsqueeze(2)).sum((0, 3))),
        torch.empty_like(B).copy_(dB),
        torch.empty_like(C).copy_(dC),
        dy.new_empty(0) if D is None else torch.empty_like(D).copy_((dy_ * u_).sum((0, 2))),
        dy.new_empty(0) if delta_bias is None else torch.empty_like(delta_bias).copy_(ddelta.sum((0, 2))),
    )


def _biased(scan: Scan1d) -> Tensor:
    delta = scan.delta.to(scan.A.dtype)
    return delta if scan.delta_bias is None else delta + scan.delta_bias[:, None]


def _prepare(scan: Scan1d) -> tuple[Tensor, Tensor, Tensor]:
    """Return the step ``(batch, D, L)`` and B and C spread over the channels of their group, ``(batch, D, N, L)``."""
    step = _biased(scan)
    spread = scan.u.shape[1] // scan.B.shape[1]
    B, C = (tensor.to(scan.A.dtype).repeat_interleave(spread, dim=1) for tensor in (scan.B, scan.C))
    return softplus(step) if scan.delta_softplus else step, B, C


def _states(step: Tensor, u: Tensor, A: Tensor, B: Tensor) -> Tensor:
    """Return h_{-1} = 0, h_0, ..., h_{L-1}, ``(batch, D, N, L + 1)``."""
    batch, channels, length = u.shape
    states = u.new_zeros(batch, channels, A.shape[1], length + 1)
    for t in range(length):
        decay = torch.exp(step[:, :, None, t] * A)
        states[..., t + 1] = decay * states[..., t] + (step[:, :, t] * u[:, :, t]).unsqueeze(2) * B[..., t]
    return states


BACKEND = unrolled.backend(selective_scan, selective_scan_backward)
