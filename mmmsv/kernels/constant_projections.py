"""The scan whose B or C is the same for all tokens, (D, N), as in S4D: one of N = 1 for each number of the state.

Kernels take B and C of each token, for groups of channels that share them. Here each channel has its own, and it is a
factor: of u on the way in, of the state on the way out. So a scan whose groups are the N numbers of the state, each
with all channels and a state of one number, gives the same. It holds u, the step and y N times.
"""

from torch import Tensor
from torch.nn.functional import silu

from . import ops
from .argument_checks import state_dtype
from .strides import laid_out_as


def scan_with_constants(
    u: Tensor,
    delta: Tensor,
    B: Tensor,
    C: Tensor,
    z: Tensor | None,
    A: Tensor,
    D: Tensor | None,
    delta_bias: Tensor | None,
    h0: Tensor | None,
    softplus: bool,
    chunk: int,
) -> tuple[Tensor, Tensor]:
    """Return what ``ops.selective_scan`` does, where B, C, or both are weights, ``(G, D, N)``.

    Args:
        u: ``(batch, L, G, D)``; this and the others as in :class:`.arguments.SelectiveScan`.
        delta: ``(batch, L, G, D)``.
        B: ``(batch, L, G, N)`` or ``(G, D, N)``.
        C: ``(batch, L, G, N)`` or ``(G, D, N)``.
        z: ``(batch, L, G, D)``.
        A: ``(G, D, N)``.
        D: ``(G, D)``.
        delta_bias: ``(G, D)``.
        h0: ``(batch, N, G, D)``.
        softplus: Whether the step goes through a softplus.
        chunk: Tokens of a chunk.
    """
    groups, _, state = A.shape
    dtype = state_dtype(u)
    wide = u.to(dtype)
    driven = wide.unsqueeze(3) * B.to(dtype).mT if B.dim() == 3 else _for_each_number(wide, state)
    ones = wide.new_ones(1).expand(*u.shape[:2], groups * state, 1)
    of_numbers = [ones if each.dim() == 3 else each.to(dtype).flatten(2).unsqueeze(3) for each in (B, C)]
    y, last = ops.selective_scan(
        driven.flatten(2, 3),
        _for_each_number(delta.to(dtype), state).flatten(2, 3),
        *of_numbers,
        None,
        A.to(dtype).mT.flatten(0, 1).unsqueeze(2),
        None,
        None if delta_bias is None else delta_bias.unsqueeze(1).expand(-1, state, -1).flatten(0, 1),
        None if h0 is None else h0.transpose(1, 2).flatten(1, 2).unsqueeze(1),
        softplus,
        chunk,
    )
    y = y.unflatten(2, (groups, state))
    y = (y * C.to(dtype).mT if C.dim() == 3 else y).sum(3)
    if D is not None:
        y = y + D * wide
    if z is not None:
        y = y * silu(z.to(dtype))
    return laid_out_as(u, y.to(u.dtype)), last[:, 0].unflatten(1, (groups, state)).transpose(1, 2)


def _for_each_number(x: Tensor, state: int) -> Tensor:
    """Repeat ``(batch, L, G, D)`` to ``(batch, L, G, N, D)``, without a copy."""
    return x.unsqueeze(3).expand(-1, -1, -1, state, -1)
