"""The scan over maps made of one along sequences: unroll the maps along their routes, scan, lay the walks back.

For backends that scan sequences only. Each step copies the maps, unless each has one row; the kernels of the backends
``cpu`` and ``triton`` walk over the maps as they are.
"""

from collections.abc import Callable
from typing import NamedTuple, TypeAlias

import torch
from torch import Tensor

from ...arguments import CHUNK, Scan2d
from ...dispatch import Kernel
from ...routes import ROUTES, roll_up, unroll


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


# Computes y, (batch, L, K, D), and the states before each chunk, (batch, chunks, N, K * D).
Forward: TypeAlias = Callable[[Sequences], tuple[Tensor, Tensor]]
# Computes, from dy and these states, the gradients of the first seven of Sequences.
Gradients: TypeAlias = tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]
Backward: TypeAlias = Callable[[Sequences, Tensor, Tensor], Gradients]


def kernel(forward: Forward, backward: Backward) -> Kernel:
    """Return a kernel for ``scan2d`` that runs a scan along sequences."""

    def scan_maps(scan: Scan2d) -> tuple[Tensor, Tensor]:
        y, states = forward(_sequences_of(scan, _unroll(scan, scan.dt)))
        return _roll_up_all(scan, y, scan.merge).to(scan.y_dtype), states if scan.chunk else states.new_empty(0)

    def scan_maps_backward(scan: Scan2d, dy: Tensor, states: Tensor) -> tuple[Tensor | None, ...]:
        dt = _unroll(scan, scan.dt)
        given = _sequences_of(scan, dt)
        dy = _unroll_gradient(scan, dy)
        du, ddelta, dB, dC, dA, dskip, dbias = backward(given, dy, scan.kept_states(states))
        dx = _roll_up_all(scan, du, merge=True) if scan.x.dim() == 4 else du.unflatten(1, scan.x.shape[1:3])
        ddt, dW_dt = ddelta, None
        if scan.W_dt is not None:
            ddt = torch.einsum("blqd,qdr->blqr", ddelta, _each(scan, scan.W_dt))
            dW_dt = torch.einsum("blqd,blqr->qdr", ddelta, dt.to(ddelta.dtype))
        sets = scan.A.shape[0]
        per_token = (_fold_sets(scan, gradient) for gradient in (ddt, dB, dC))
        per_set = (None if one is None else one.sum_to_size(sets, *one.shape[1:]) for one in (dW_dt, dbias, dA, dskip))
        return dx, *per_token, *per_set

    return Kernel(scan_maps, scan_maps_backward)


def _sequences_of(scan: Scan2d, dt: Tensor) -> Sequences:
    """Put the walks over the maps side by side; ``dt`` are those of the step, ``(batch, L, K, R or D)``."""
    delta = dt
    if scan.W_dt is not None:  # in the state's dtype, as the kernels that make the step themselves hold it
        delta = torch.einsum("blqr,qdr->blqd", dt.to(scan.A.dtype), _each(scan, scan.W_dt))
    # What several routes share is summed over them, in the dtype of u, B and C: that of the state.
    dtype = scan.A.dtype if scan.x.dim() == 4 else scan.x.dtype
    u, B, C = (_unroll(scan, tensor).to(dtype) for tensor in (scan.maps, scan.B, scan.C))
    skip, bias = (None if weight is None else _each(scan, weight) for weight in (scan.Dskip, scan.b_dt))
    tokens = scan.x.shape[1] * scan.x.shape[2]
    chunk = scan.chunk or CHUNK
    starts = [begin + start for begin in range(0, u.shape[1], max(tokens, 1)) for start in range(0, tokens, chunk)]
    return Sequences(u, delta, B, C, _each(scan, scan.A), skip, bias, scan.softplus, chunk, starts)


def _roll_up_all(scan: Scan2d, tokens: Tensor, merge: bool) -> Tensor:
    """Lay ``(batch, L, K, D)`` back onto the map, summed over the routes or one map for each."""
    height, width = scan.x.shape[1:3]
    if scan.x.dim() == 5:
        return tokens.contiguous().unflatten(1, (height, width)).permute(0, 3, 1, 2, 4)
    maps = []
    for routes, sequence in zip(scan.sequences, tokens.unbind(2), strict=True):
        walks = sequence.unflatten(1, (len(routes), height * width)).unbind(1)
        maps += [roll_up(walk, (route,), height, width) for walk, route in zip(walks, routes, strict=True)]
    return sum(maps[1:], start=maps[0]).contiguous() if merge else torch.stack(maps, 1)


def _each(scan: Scan2d, weight: Tensor) -> Tensor:
    """Expand a weight ``(S, ...)`` to one for each sequence."""
    return weight.expand(len(scan.sequences), *weight.shape[1:])


def _unroll(scan: Scan2d, tensor: Tensor) -> Tensor:
    """Unroll what each token has for each set, ``(batch, H, W, S, *)``, to ``(batch, L, K, *)``."""
    if scan.x.dim() == 5:
        return tensor.flatten(1, 2)
    tensor = tensor.expand(-1, -1, -1, len(scan.sequences), -1)
    return torch.stack([unroll(tensor[..., q, :], routes) for q, routes in enumerate(scan.sequences)], 2)


def _unroll_gradient(scan: Scan2d, dy: Tensor) -> Tensor:
    """Unroll a gradient of y, whose routes are merged or not, to ``(batch, L, K, D)``."""
    if scan.merge:
        return _unroll(scan, dy.unsqueeze(3))
    walks = [unroll(one, (ROUTES[code],)) for one, code in zip(dy.unbind(1), scan.route_codes, strict=True)]
    return torch.cat(walks, 1).unsqueeze(2) if scan.carry else torch.stack(walks, 2)


def _fold_sets(scan: Scan2d, gradient: Tensor) -> Tensor:
    """Lay a gradient ``(batch, L, K, *)`` back onto the map, summed over the sequences of each set."""
    height, width = scan.x.shape[1:3]
    if scan.x.dim() == 5:
        return gradient.unflatten(1, (height, width))
    walks = zip(scan.sequences, gradient.unbind(2), strict=True)
    maps = torch.stack([roll_up(walk, routes, height, width) for routes, walk in walks], 3)
    return maps.sum_to_size((*maps.shape[:3], scan.A.shape[0], maps.shape[4]))
