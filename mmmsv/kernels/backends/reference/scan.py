"""The recurrence as it is written, token by token."""

import torch
from torch import Tensor
from torch.nn.functional import silu, softplus

from ..torch.sequences import Gradients, Sequences


def forward(given: Sequences) -> tuple[Tensor, Tensor, Tensor]:
    """Compute y, the last state, and the states before each chunk."""
    states = _states(given, _step(given))
    y = _outputs(given, states)
    if given.z is not None:
        y = y * silu(given.z.to(y.dtype))
    kept = states[:, given.chunk_starts].permute(0, 1, 4, 2, 3).flatten(3)
    return y.to(given.u.dtype), states[:, -1].permute(0, 3, 1, 2).contiguous(), kept


def backward(given: Sequences, dy: Tensor, dlast: Tensor | None, states: Tensor) -> Gradients:
    """Compute the gradients of the tensors.

    Computes all states again from the first token on: an oracle leaves nothing to others.
    """
    A, skip = given.A, given.skip
    u, B, C, dy = (tensor.to(A.dtype) for tensor in (given.u, given.B, given.C, dy))
    step, B, C = _step(given), B.unsqueeze(3), C.unsqueeze(3)
    decay = torch.exp(step.unsqueeze(-1) * A)
    states = _states(given, step)
    before, after = states[:, :-1], states[:, 1:]
    dz = None
    if given.z is not None:
        z = given.z.to(A.dtype)
        sigmoid = torch.sigmoid(z)
        dz = dy * _outputs(given, states) * sigmoid * (1 + z * (1 - sigmoid))
        dy = dy * silu(z)

    # g_t = dL/dh_t = C_t dy_t + exp(step_{t+1} A) g_{t+1}, and for the last one what comes from the last state
    g = dy.unsqueeze(-1) * C
    carried = torch.zeros_like(states[:, 0]) if dlast is None else dlast.permute(0, 2, 3, 1)
    for t in range(g.shape[1] - 1, -1, -1):
        g[:, t] += carried
        carried = decay[:, t] * g[:, t]

    dexponent = g * before * decay
    gB = (g * B).sum(-1)
    ddelta = (dexponent * A).sum(-1) + gB * u
    if given.softplus:
        ddelta = ddelta * torch.sigmoid(_biased(given))
    return Gradients(
        u=gB * step if skip is None else gB * step + skip * dy,
        delta=ddelta,
        B=(g * (step * u).unsqueeze(-1)).sum(3),
        C=(after * dy.unsqueeze(-1)).sum(3),
        A=(dexponent * step.unsqueeze(-1)).sum((0, 1)),
        skip=(dy * u).sum((0, 1)),
        bias=ddelta.sum((0, 1)),
        z=dz,
        h0=carried.permute(0, 3, 1, 2),
    )


def _outputs(given: Sequences, states: Tensor) -> Tensor:
    """Return y before its gate, ``(batch, L, K, D)``."""
    y = (states[:, 1:] * given.C.to(given.A.dtype).unsqueeze(3)).sum(-1)
    return y if given.skip is None else y + given.skip * given.u


def _biased(given: Sequences) -> Tensor:
    delta = given.delta.to(given.A.dtype)
    return delta if given.bias is None else delta + given.bias


def _step(given: Sequences) -> Tensor:
    """Return the step, ``(batch, L, K, D)``."""
    return softplus(_biased(given)) if given.softplus else _biased(given)


def _states(given: Sequences, step: Tensor) -> Tensor:
    """Return the state before the first token and those after each, ``(batch, L + 1, K, D, N)``."""
    u, B = (tensor.to(given.A.dtype) for tensor in (given.u, given.B))
    batch, length = u.shape[:2]
    states = given.A.new_empty(batch, length + 1, *given.A.shape)
    states[:, 0] = given.first_state().permute(0, 2, 3, 1)
    for t in range(length):
        decay = torch.exp(step[:, t].unsqueeze(-1) * given.A)
        states[:, t + 1] = decay * states[:, t] + (step[:, t] * u[:, t]).unsqueeze(-1) * B[:, t].unsqueeze(2)
    return states
