"""The scan in plain PyTorch, vectorised over chunks: runs wherever torch runs.

The sequence is walked in chunks of about ``_ELEMENTS`` state elements, so that nothing of size batch x D x L x N
exists; inside a chunk :func:`linear_scan_` works on all sub-chunks at once. Nothing is divided by a product of decays,
so a decay of 0 is as exact as any other.

Layout inside: ``(batch, T, N, K, D)`` for states and ``(batch, T, K, D)`` for u and delta: channels innermost, so
channels-last inputs are read in place and each operation runs over contiguous channels.
"""

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import silu, softplus

from .sequences import Gradients, Sequences

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


def forward(given: Sequences) -> tuple[Tensor, Tensor, Tensor]:
    """Compute y, the last state, and the states before each chunk."""
    walk = _Walk(given)
    y = torch.empty_like(given.u)
    state, kept = given.first_state(), []
    for chunks, where in walk.spans():
        chunk = walk.run(where, state)
        state = chunk.states[:, -1]
        kept.append(chunk.states[:, [start - where.start for start in given.chunk_starts[chunks]]].flatten(3))
        total = walk.outputs(chunk)
        y[:, where] = total if given.z is None else total.mul_(silu(given.z[:, where].to(total.dtype)))
    return y, state.contiguous(), torch.cat(kept, 1) if kept else state.flatten(2).unsqueeze(1)[:, :0]


def backward(given: Sequences, dy: Tensor, dlast: Tensor | None, states: Tensor) -> Gradients:
    """Compute the gradients of the tensors."""
    walk = _Walk(given)
    du, ddelta, dB, dC = (torch.empty_like(tensor) for tensor in given[:4])
    dz = None if given.z is None else torch.empty_like(given.z)
    dA, dskip, dbias = torch.zeros_like(walk.A), *(torch.zeros_like(walk.A[0]) for _ in range(2))

    # What the tokens after a chunk want of the state that leaves it: exp(step_{t+1} A) g_{t+1}.
    wanted = walk.A.new_zeros(len(given.u), *walk.A.shape) if dlast is None else dlast
    for chunks, where in reversed(list(walk.spans())):
        chunk = walk.run(where, states[:, chunks.start].view(wanted.shape))
        u_, step, decay, states_, B_, C_ = chunk
        before, after = states_[:, :-1], states_[:, 1:]
        dy_ = dy[:, where].to(walk.A.dtype)
        if given.z is not None and dz is not None:
            gate = given.z[:, where].to(walk.A.dtype)
            dz[:, where] = torch.ops.aten.silu_backward(walk.outputs(chunk).mul_(dy_), gate)
            dy_ = dy_ * silu(gate)

        # g_t = dL/dh_t = C_t dy_t + exp(step_{t+1} A) g_{t+1}
        g = C_ * dy_.unsqueeze(2)
        g[:, -1] += wanted
        linear_scan_(decay[:, 1:], g[:, :-1], g[:, -1], reverse=True)
        wanted = decay[:, 0] * g[:, 0]

        dB[:, where] = (g * (step * u_).unsqueeze(2)).sum(-1).transpose(2, 3)
        dC[:, where] = (after * dy_.unsqueeze(2)).sum(-1).transpose(2, 3)
        gB = _contract(B_, g)
        dexponent = decay.mul_(before).mul_(g)
        dA += (dexponent * step.unsqueeze(2)).sum((0, 1))
        dstep = _contract(walk.A, dexponent).addcmul_(gB, u_)
        if given.softplus:
            dstep *= torch.sigmoid(walk.biased(where))
        ddelta[:, where] = dstep
        dbias += dstep.sum((0, 1))
        gB *= step
        if given.skip is not None:
            gB.addcmul_(given.skip, dy_)
            dskip += (dy_ * u_).sum((0, 1))
        du[:, where] = gB

    return Gradients(du, ddelta, dB, dC, dA.movedim(0, 2), dskip, dbias, dz, wanted)


def _contract(weight: Tensor, state: Tensor) -> Tensor:
    """Sum weight * state over the N states (the third dimension from the right), without a product of full size."""
    weights, states = weight.unbind(-3), state.unbind(-3)
    total = weights[0] * states[0]
    for one_weight, one_state in zip(weights[1:], states[1:], strict=True):
        total.addcmul_(one_weight, one_state)
    return total


class _Chunk(NamedTuple):
    """Some tokens of the sequences in the state's dtype, and what the scan made of them."""

    u: Tensor  # (batch, T, K, D)
    step: Tensor  # (batch, T, K, D)
    decay: Tensor  # (batch, T, N, K, D)
    states: Tensor  # (batch, 1 + T, N, K, D): the state before the first token, then that after each
    B: Tensor  # (batch, T, N, K, 1)
    C: Tensor  # (batch, T, N, K, 1)


class _Walk:
    """Reads sequences chunk by chunk, in the state's dtype, and scans them."""

    def __init__(self, given: Sequences) -> None:
        self.given = given
        self.A = given.A.movedim(2, 0).contiguous()  # (N, K, D)

    def spans(self) -> Iterator[tuple[slice, slice]]:
        """Yield which chunks are worked on at once, and which tokens these are."""
        batch, length = self.given.u.shape[:2]
        count = max(_ELEMENTS // max(batch * self.A.numel() * self.given.chunk, 1), 1)
        starts = [*self.given.chunk_starts, length]
        last = len(starts) - 1
        for first in range(0, last, count):
            end = min(first + count, last)
            yield slice(first, end), slice(starts[first], starts[end])

    def biased(self, where: slice) -> Tensor:
        delta = self.given.delta[:, where].to(self.A.dtype)
        return delta if self.given.bias is None else delta + self.given.bias

    def outputs(self, chunk: _Chunk) -> Tensor:
        """Return y before its gate, ``(batch, T, K, D)``."""
        total = _contract(chunk.C, chunk.states[:, 1:])
        return total if self.given.skip is None else total.addcmul_(self.given.skip, chunk.u)

    def run(self, where: slice, start: Tensor) -> _Chunk:
        """Read the tokens ``where`` and scan them from the state ``start``."""
        u = self.given.u[:, where].to(self.A.dtype)
        step = self.biased(where)
        if self.given.softplus:
            step = softplus(step)
        B, C = (x[:, where].to(self.A.dtype).transpose(2, 3).unsqueeze(-1) for x in (self.given.B, self.given.C))
        batch, length = u.shape[:2]
        decay = self.A.new_empty(batch, length, *self.A.shape)
        torch.mul(step.unsqueeze(2), self.A, out=decay).exp_()
        states = self.A.new_empty(batch, 1 + length, *self.A.shape)
        states[:, 0] = start
        torch.mul((step * u).unsqueeze(2), B, out=states[:, 1:])
        linear_scan_(decay, states[:, 1:], start)
        return _Chunk(u, step, decay, states, B, C)
