"""The oracle: the recurrence as it is written, token by token. Slow; every other backend is tested against it."""

import torch
from torch import Tensor
from torch.nn.functional import softplus


def forward(
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None,
    delta_bias: Tensor | None,
    delta_softplus: bool,
) -> Tensor:
    """Compute y; arguments as :func:`mmmsv.kernels.selective_scan`, ``A``, ``D`` and bias in the state's dtype."""
    step, B, C = _prepare(u, delta, A, B, C, delta_bias, delta_softplus)
    states = _states(step, u.to(A.dtype), A, B)
    y = (states[..., 1:] * C).sum(2)
    if D is not None:
        y = y + D[:, None] * u
    return torch.empty_like(u).copy_(y)


def backward(
    dy: Tensor,
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None,
    delta_bias: Tensor | None,
    delta_softplus: bool,
) -> tuple[Tensor, ...]:
    """Compute the gradients of the seven tensors, in their order; empty where a weight was not given."""
    groups = B.shape[1]
    step, B_, C_ = _prepare(u, delta, A, B, C, delta_bias, delta_softplus)
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
        ddelta = ddelta * torch.sigmoid(_biased(delta, A, delta_bias))
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


def _biased(delta: Tensor, A: Tensor, delta_bias: Tensor | None) -> Tensor:
    delta = delta.to(A.dtype)
    return delta if delta_bias is None else delta + delta_bias[:, None]


def _prepare(
    u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, delta_bias: Tensor | None, delta_softplus: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the step ``(batch, D, L)`` and B and C spread over the channels of their group, ``(batch, D, N, L)``."""
    step = _biased(delta, A, delta_bias)
    spread = u.shape[1] // B.shape[1]
    B, C = (tensor.to(A.dtype).repeat_interleave(spread, dim=1) for tensor in (B, C))
    return softplus(step) if delta_softplus else step, B, C


def _states(step: Tensor, u: Tensor, A: Tensor, B: Tensor) -> Tensor:
    """Return h_{-1} = 0, h_0, ..., h_{L-1}, ``(batch, D, N, L + 1)``."""
    batch, channels, length = u.shape
    states = u.new_zeros(batch, channels, A.shape[1], length + 1)
    for t in range(length):
        decay = torch.exp(step[:, :, None, t] * A)
        states[..., t + 1] = decay * states[..., t] + (step[:, :, t] * u[:, :, t]).unsqueeze(2) * B[..., t]
    return states
