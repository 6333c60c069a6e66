"""The scan in plain PyTorch, vectorised over chunks: runs wherever torch runs.

The sequence is walked in chunks of about ``_ELEMENTS`` state elements, so that nothing of size batch x D x L x N
exists; inside a chunk :func:`linear_scan_` works on all sub-chunks at once. Nothing is divided by a product of decays,
so a decay of 0 is as exact as any other.

Layout inside: ``(batch, T, N, G, D / G)`` for states and ``(batch, T, G, D / G)`` for u and delta: channels innermost,
so channels-last inputs are read in place and each operation runs over contiguous channels.
"""

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import softplus

from ...scan_arguments import CHUNK, Scan1d, chunks
from . import unrolled

# State elements worked on at once. Small enough for a CPU's last-level cache, large enough to hide launch costs.
_ELEMENTS = 1 << 19
# Tokens of a sub-chunk: a scan of T tokens takes about 3 * _STEP operations on T / _STEP states, then recurses.
_STEP = 16


def linear_scan_(decay: Tensor, drive: Tensor, start: Tensor, reverse: bool = False) -> None:
    r"""Overwrite ``drive`` with the states of :math:`h_t = decay_t\, h_{t-1} + drive_t` along dimension 1.

    Work-efficient: first what each sub-chunk does to a state that enters it (a factor and an offset), then the states
    that really enter (the same problem, ``_STEP`` times shorter), then all sub-chunks again from those.

    Args:
        decay: ``(batch, T, ...)``.
        drive: ``(batch, T, ...)``, overwritten.
        start: State before the first token (after the last one for ``reverse``), ``(batch, ...)``.
        reverse: Run from the last token to the first.
    """
    length = decay.shape[1]
    chunks, rest = divmod(length, _STEP)
    # The tokens that fill no sub-chunk come last in the direction of the scan.
    main = slice(rest, length) if reverse else slice(0, length - rest)
    tail = range(rest)[::-1] if reverse else range(length - rest, length)
    order = range(_STEP)[::-1] if reverse else range(_STEP)
    if chunks > 1:
        decays = [part[:, :, 0] for part in decay[:, main].unflatten(1, (chunks, _STEP)).split(1, dim=2)]
        drives = [part[:, :, 0] for part in drive[:, main].unflatten(1, (chunks, _STEP)).split(1, dim=2)]
        first, *others = order
        factor, offset = decays[first].clone(), drives[first].clone()
        for t in others:
            torch.addcmul(drives[t], decays[t], offset, out=offset)
            factor *= decays[t]
        linear_scan_(factor, offset, start, reverse)  # offset: the state that leaves each sub-chunk
        start = start.unsqueeze(1)
        state = torch.cat((offset[:, 1:], start), 1) if reverse else torch.cat((start, offset[:, :-1]), 1)
        for t in order:
            state = drives[t].addcmul_(decays[t], state)
        start = offset[:, 0 if reverse else -1]
    else:
        tail = range(length)[::-1] if reverse else range(length)
    for t in tail:
        start = drive[:, t].addcmul_(decay[:, t], start)


def selective_scan(scan: Scan1d) -> tuple[Tensor, Tensor]:
    """Compute y and the states before every 64th token."""
    sequence = _Sequence(scan)
    y, states = torch.empty_like(scan.u), scan.A.new_empty(scan.states_shape)
    out = sequence.per_token(y)
    skip = None if scan.D is None else sequence.per_channel(scan.D)
    state = sequence.zero_state()
    for where in sequence.chunks():
        chunk = sequence.run(where, state)
        state = chunk.states[:, -1]
        states[:, _kept(where)] = chunk.states[:, :-1:CHUNK].flatten(3)
        total = _contract(chunk.C, chunk.states[:, 1:])
        if skip is not None:
            total.addcmul_(skip, chunk.u)
        out[:, where] = total
    return y, states


def selective_scan_backward(scan: Scan1d, dy: Tensor, states: Tensor) -> tuple[Tensor, ...]:
    """Compute the gradients of the seven tensors, in their order; empty where a weight was not given."""
    u, delta, A, B, C, D, delta_bias, delta_softplus = scan
    sequence = _Sequence(scan)
    du, ddelta, dA, dB, dC = (torch.empty_like(tensor) for tensor in (u, delta, A, B, C))
    du_, ddelta_ = sequence.per_token(du), sequence.per_token(ddelta)
    dB_, dC_ = sequence.per_group(dB), sequence.per_group(dC)
    skip = None if D is None else sequence.per_channel(D)
    dy = sequence.per_token(dy)
    A_total, D_total, bias_total = torch.zeros_like(sequence.A), *(torch.zeros_like(sequence.A[0]) for _ in range(2))

    # What the tokens behind a chunk want of the state that leaves it: exp(step_{t+1} A) g_{t+1}.
    wanted = sequence.zero_state()
    for where in reversed(list(sequence.chunks())):
        u_, step, decay, states_, B_, C_ = sequence.run(where, states[:, _kept(where)][:, 0].view_as(wanted))
        before, after = states_[:, :-1], states_[:, 1:]
        dy_ = dy[:, where].to(A.dtype)

        # g_t = dL/dh_t = C_t dy_t + exp(step_{t+1} A) g_{t+1}
        g = C_ * dy_.unsqueeze(2)
        g[:, -1] += wanted
        linear_scan_(decay[:, 1:], g[:, :-1], g[:, -1], reverse=True)
        wanted = decay[:, 0] * g[:, 0]

        dB_[:, where] = (g * (step * u_).unsqueeze(2)).sum(-1)
        dC_[:, where] = (after * dy_.unsqueeze(2)).sum(-1)
        gB = _contract(B_, g)
        dexponent = decay.mul_(before).mul_(g)
        A_total += (dexponent * step.unsqueeze(2)).sum((0, 1))
        dstep = _contract(sequence.A, dexponent).addcmul_(gB, u_)
        if delta_softplus:
            dstep *= torch.sigmoid(sequence.biased(where))
        ddelta_[:, where] = dstep
        bias_total += dstep.sum((0, 1))
        gB *= step
        if skip is not None:
            gB.addcmul_(skip, dy_)
            D_total += (dy_ * u_).sum((0, 1))
        du_[:, where] = gB

    return (
        du,
        ddelta,
        dA.copy_(A_total.flatten(1).t()),
        dB,
        dC,
        u.new_empty(0) if D is None else D_total.flatten().to(D.dtype),
        u.new_empty(0) if delta_bias is None else bias_total.flatten().to(delta_bias.dtype),
    )


def _kept(where: slice) -> slice:
    """Return which of the states before every 64th token lie in the tokens ``where``."""
    return slice(where.start // CHUNK, chunks(where.stop))


def _contract(weight: Tensor, state: Tensor) -> Tensor:
    """Sum weight * state over the N states (the third dimension from the right), without a product of full size."""
    weights, states = weight.unbind(-3), state.unbind(-3)
    total = weights[0] * states[0]
    for one_weight, one_state in zip(weights[1:], states[1:], strict=True):
        total.addcmul_(one_weight, one_state)
    return total


class _Chunk(NamedTuple):
    """Some tokens of a sequence in the state's dtype, and what the scan made of them."""

    u: Tensor  # (batch, T, G, D / G)
    step: Tensor  # (batch, T, G, D / G)
    decay: Tensor  # (batch, T, N, G, D / G)
    states: Tensor  # (batch, 1 + T, N, G, D / G): the state before the first token, then that after each
    B: Tensor  # (batch, T, N, G, 1)
    C: Tensor  # (batch, T, N, G, 1)


class _Sequence:
    """The inputs of a scan, seen as ``(batch, L, [N,] G, D / G)``, and read chunk by chunk in the state's dtype."""

    def __init__(self, scan: Scan1d) -> None:
        self.groups = scan.B.shape[1]
        self.A = scan.A.t().unflatten(1, (self.groups, -1)).contiguous()
        self.u, self.delta = self.per_token(scan.u), self.per_token(scan.delta)
        self.B, self.C = self.per_group(scan.B), self.per_group(scan.C)
        self.bias = None if scan.delta_bias is None else self.per_channel(scan.delta_bias)
        self.softplus = scan.delta_softplus

    def per_token(self, tensor: Tensor) -> Tensor:
        """View ``(batch, D, L)`` as ``(batch, L, G, D / G)``."""
        return tensor.transpose(1, 2).unflatten(2, (self.groups, tensor.shape[1] // self.groups))

    def per_group(self, tensor: Tensor) -> Tensor:
        """View ``(batch, G, N, L)`` as ``(batch, L, N, G)``."""
        return tensor.permute(0, 3, 2, 1)

    def per_channel(self, weight: Tensor) -> Tensor:
        """View ``(D,)`` as ``(G, D / G)``."""
        return weight.unflatten(0, (self.groups, -1))

    def zero_state(self) -> Tensor:
        return self.A.new_zeros(self.u.shape[0], *self.A.shape)

    def chunks(self) -> Iterator[slice]:
        size = CHUNK * max(_ELEMENTS // max(self.u.shape[0] * self.A.numel() * CHUNK, 1), 1)
        for begin in range(0, self.u.shape[1], size):
            yield slice(begin, min(begin + size, self.u.shape[1]))

    def biased(self, where: slice) -> Tensor:
        delta = self.delta[:, where].to(self.A.dtype)
        return delta if self.bias is None else delta + self.bias

    def run(self, where: slice, start: Tensor) -> _Chunk:
        """Read the tokens ``where`` and scan them from the state ``start``."""
        u = self.u[:, where].to(self.A.dtype)
        step = self.biased(where)
        if self.softplus:
            step = softplus(step)
        B, C = (tensor[:, where].to(self.A.dtype).unsqueeze(-1) for tensor in (self.B, self.C))
        batch, length = u.shape[:2]
        decay = self.A.new_empty(batch, length, *self.A.shape)
        torch.mul(step.unsqueeze(2), self.A, out=decay).exp_()
        states = self.A.new_empty(batch, 1 + length, *self.A.shape)
        states[:, 0] = start
        torch.mul((step * u).unsqueeze(2), B, out=states[:, 1:])
        linear_scan_(decay, states[:, 1:], start)
        return _Chunk(u, step, decay, states, B, C)


BACKEND = unrolled.backend(selective_scan, selective_scan_backward)
