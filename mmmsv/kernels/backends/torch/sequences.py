"""Sequences: what the backends that scan along sequences compute, and the kernel of ``selective_scan`` made of it."""

from collections.abc import Callable
from typing import NamedTuple, TypeAlias

from torch import Tensor

from ...arguments import CHUNK, SelectiveScan
from ...dispatch import Kernel
from ...strides import laid_out_as


class Sequences(NamedTuple):
    """K sequences of L tokens with D channels each; the weights are in the dtype of the state.

    Args:
        u: ``(batch, L, K, D)``.
        delta: Step before bias and softplus, ``(batch, L, K, D)``.
        B: ``(batch, L, K, N)``.
        C: ``(batch, L, K, N)``.
        A: ``(K, D, N)``.
        skip: ``(K, D)``.
        bias: ``(K, D)``.
        softplus: Whether the step goes through a softplus.
        chunk: Tokens of a chunk.
        chunk_starts: First token of each chunk; each walk over a map begins with one.
        z: Gate: y is multiplied by SiLU(z), ``(batch, L, K, D)``.
        h0: State before the first token, ``(batch, N, K, D)``; 0 where it is None.
    """

    u: Tensor
    delta: Tensor
    B: Tensor
    C: Tensor
    A: Tensor
    skip: Tensor | None
    bias: Tensor | None
    softplus: bool
    chunk: int
    chunk_starts: list[int]
    z: Tensor | None = None
    h0: Tensor | None = None

    def first_state(self) -> Tensor:
        """Return a new tensor with the state before the first token, ``(batch, N, K, D)``."""
        if self.h0 is not None:
            return self.h0.contiguous().clone()
        sequences, channels, state = self.A.shape
        return self.A.new_zeros(self.u.shape[0], state, sequences, channels)


class Gradients(NamedTuple):
    """Gradients of the tensors of :class:`Sequences`, with their names; that of what is None, anything."""

    u: Tensor
    delta: Tensor
    B: Tensor
    C: Tensor
    A: Tensor
    skip: Tensor
    bias: Tensor
    z: Tensor | None
    h0: Tensor


# Computes y, (batch, L, K, D), the last state, (batch, N, K, D), and those before chunks, (batch, chunks, N, K * D).
Forward: TypeAlias = Callable[[Sequences], tuple[Tensor, Tensor, Tensor]]
# Computes the gradients from dy, that of the last state (None where nothing has used it), and the states before chunks.
Backward: TypeAlias = Callable[[Sequences, Tensor, Tensor | None, Tensor], Gradients]


def kernel(forward: Forward, backward: Backward) -> Kernel:
    """Return a kernel for ``selective_scan``."""

    def scan(given: SelectiveScan) -> tuple[Tensor, Tensor, Tensor]:
        y, last, states = forward(_sequences_of(given))
        return laid_out_as(given.u, y.flatten(2)), last.flatten(2), states if given.chunk else states.new_empty(0)

    def scan_backward(
        given: SelectiveScan, dy: Tensor, dlast: Tensor | None, states: Tensor
    ) -> tuple[Tensor | None, ...]:
        sequences = _sequences_of(given)
        sizes = sequences.A.shape[:2]
        dlast = None if dlast is None else dlast.unflatten(2, sizes)
        of = backward(sequences, dy.unflatten(2, sizes), dlast, given.kept_states(states))
        du, ddelta, dz, dh0 = (None if one is None else one.flatten(2) for one in (of.u, of.delta, of.z, of.h0))
        return du, ddelta, of.B, of.C, dz, of.A.flatten(0, 1), of.skip.flatten(), of.bias.flatten(), dh0

    return Kernel(scan, scan_backward)


def _sequences_of(given: SelectiveScan) -> Sequences:
    u, delta, B, C, z, A, D, delta_bias, h0, softplus, chunk = given.by_group()
    chunk = chunk or CHUNK
    starts = list(range(0, u.shape[1], chunk))
    return Sequences(u, delta, B, C, A, D, delta_bias, softplus, chunk, starts, z, h0)
