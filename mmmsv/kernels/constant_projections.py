"""The scan whose B or C is the same for all tokens, (D, N), as in S4D: one of N = 1 for each number of the state.

Kernels take B and C of each token, for groups of channels that share them. Here each channel has its own, and it is a
factor: of u on the way in, of the state on the way out. So a scan whose groups are the N numbers of the state, each
with all channels and a state of one number, gives the same. It holds u, the step and y N times.
"""

from torch import Tensor
from torch.nn.functional import silu

from . import ops
from .argument_checks import state_dtype


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
    """Return what ``ops.selective_scan`` does, where B, C, or both are weights, ``(D, N)``.

    Args:
        u: ``(batch, L, D)``; this and the others as in :class:`.arguments.SelectiveScan`.
        delta: ``(batch, L, D)``.
        B: ``(batch, L, G, N)`` or ``(D, N)``.
        C: ``(batch, L, G, N)`` or ``(D, N)``.
        z: ``(batch, L, D)``.
        A: ``(D, N)``.
        D: ``(D,)``.
        delta_bias: ``(D,)``.
        h0: ``(batch, N, D)``.
        softplus: Whether the step goes through a softplus.
        chunk: Tokens of a chunk.
    """
    dtype, state = state_dtype(u), A.shape[1]
    of_tokens = [each for each in (B, C) if each.dim() == 4]
    groups = of_tokens[0].shape[2] if of_tokens else 1
    sizes = groups, A.shape[0] // groups
    # Each channel becomes N, in the order (G, N, D / G).
    wide = u.to(dtype)
    # Contiguous before axes are merged: torch.export cannot tell whether others can be, where a size is dynamic.
    one, step = [each.unflatten(2, sizes).unsqueeze(3) for each in (wide, delta.to(dtype))]
    driven = one * B.to(dtype).unflatten(0, sizes).mT if B.dim() == 2 else one.expand(-1, -1, -1, state, -1)
    ones = wide.new_ones(1).expand(*u.shape[:2], groups * state, 1)
    of_numbers = [ones if each.dim() == 2 else each.to(dtype).contiguous().flatten(2).unsqueeze(3) for each in (B, C)]
    bias = None if delta_bias is None else delta_bias.unflatten(0, sizes).unsqueeze(1).expand(-1, state, -1).flatten()
    start = None if h0 is None else h0.unflatten(2, sizes).transpose(1, 2).flatten(1).unsqueeze(1)
    y, last = ops.selective_scan(
        driven.contiguous().flatten(2),
        step.expand(-1, -1, -1, state, -1).flatten(2),
        *of_numbers,
        None,
        A.to(dtype).unflatten(0, sizes).mT.flatten().unsqueeze(1),
        None,
        bias,
        start,
        softplus,
        chunk,
    )
    y = y.unflatten(2, (groups, state, sizes[1]))
    y = (y * C.to(dtype).unflatten(0, sizes).mT if C.dim() == 2 else y).sum(3).flatten(2)
    if D is not None:
        y = y + D * wide
    if z is not None:
        y = y * silu(z.to(dtype))
    return y.to(u.dtype), last[:, 0].unflatten(1, (groups, state, sizes[1])).transpose(1, 2).flatten(2)
