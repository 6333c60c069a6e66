"""The recurrence as it is written, token by token."""

import torch
from torch import Tensor
from torch.nn.functional import softplus

from ..torch.unrolled import Gradients, Sequences


def forward(given: Sequences) -> tuple[Tensor, Tensor]:
    """Compute y and the states before each chunk."""
    u, _, _, C, A, skip, *_ = given
    states = _states(given, _step(given))
    y = (states[:, 1:] * C.to(A.dtype).unsqueeze(3)).sum(-1)
    if skip is not None:
        y = y + skip * u
    return y.to(u.dtype), states[:, given.chunk_starts].permute(0, 1, 4, 2, 3).flatten(3)


def backward(given: Sequences, dy: Tensor, states: Tensor) -> Gradients:
    """Compute the gradients of the tensors, in their order.

    Computes all states again from the first token on: an oracle leaves nothing to others.
    """
    A, skip = given.A, given.skip
    u, B, C, dy = (tensor.to(A.dtype) for tensor in (given.u, given.B, given.C, dy))
    step, B, C = _step(given), B.unsqueeze(3), C.unsqueeze(3)
    decay = torch.exp(step.unsqueeze(-1) * A)
    states = _states(given, step)
    before, after = states[:, :-1], states[:, 1:]

    # g_t = dL/dh_t = C_t dy_t + exp(step_{t+1} A) g_{t+1}
    g = dy.unsqueeze(-1) * C
    for t in range(g.shape[1] - 2, -1, -1):
        g[:, t] += decay[:, t + 1] * g[:, t + 1]

    dexponent = g * before * decay
    gB = (g * B).sum(-1)
    ddelta = (dexponent * A).sum(-1) + gB * u
    if given.softplus:
        ddelta = ddelta * torch.sigmoid(_biased(given))
    return (
        gB * step if skip is None else gB * step + skip * dy,
        ddelta,
        (g * (step * u).unsqueeze(-1)).sum(3),
        (after * dy.unsqueeze(-1)).sum(3),
        (dexponent * step.unsqueeze(-1)).sum((0, 1)),
        (dy * u).sum((0, 1)),
        ddelta.sum((0, 1)),
    )


def _biased(given: Sequences) -> Tensor:
    delta = given.delta.to(given.A.dtype)
    return delta if given.bias is None else delta + given.bias


def _step(given: Sequences) -> Tensor:
    """Return the step, ``(batch, L, K, D)``."""
    return softplus(_biased(given)) if given.softplus else _biased(given)


def _states(given: Sequences, step: Tensor) -> Tensor:
    """Return h_{-1} = 0, h_0, ..., h_{L-1}, ``(batch, L + 1, K, D, N)``."""
    u, B = (tensor.to(given.A.dtype) for tensor in (given.u, given.B))
    batch, length = u.shape[:2]
    states = given.A.new_zeros(batch, length + 1, *given.A.shape)
    for t in range(length):
        decay = torch.exp(step[:, t].unsqueeze(-1) * given.A)
        states[:, t + 1] = decay * states[:, t] + (step[:, t] * u[:, t]).unsqueeze(-1) * B[:, t].unsqueeze(2)
    return states
