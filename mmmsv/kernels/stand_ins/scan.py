"""A scan in two calls, forward and backward, as the compiled modules of mamba-ssm and VMamba have it.

Between the calls the caller keeps x, ``(batch, D, chunks, 2 N)``, and may read the last state from it, at
``x[:, :, -1, 1::2]``. At these places is the state after each chunk of the op's own, of which the backward pass makes
what the op keeps; the other half, products of decays in those modules, is 0.
"""

import torch
from torch import Tensor

from ..argument_checks import (
    check_bool,
    check_sequence_shapes,
    check_shape,
    check_tensors,
    one_dtype,
    refuse_complex,
    state_dtype,
)
from ..arguments import SelectiveScan, ceil_div, choose_chunk


@torch.no_grad()
def forward(
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None,
    delta_bias: Tensor | None,
    delta_softplus: bool,
    in_float: bool = False,
) -> tuple[Tensor, Tensor]:
    """Return y, ``(batch, D, L)``, and x, for the arguments of :func:`mmmsv.kernels.selective_scan`.

    Args:
        u: ``(batch, D, L)``; this and the others as in that function.
        delta: ``(batch, D, L)``.
        A: ``(D, N)``.
        B: ``(batch, G, N, L)``, ``(batch, N, L)`` or ``(D, N)``.
        C: Likewise.
        D: ``(D,)``.
        delta_bias: ``(D,)``.
        delta_softplus: Whether the step goes through a softplus.
        in_float: Whether y is in float32, and not in the dtype of u.
    """
    given = _arguments("fwd", u, delta, A, B, C, D, delta_bias, delta_softplus, in_float)
    y, last, kept = torch.ops.mmmsv.selective_scan(*given)
    after = torch.cat((given.kept_states(kept)[:, 1:], last.unsqueeze(1)), 1)
    x = after.new_zeros(len(u), u.shape[1], after.shape[1], 2 * A.shape[1])
    x[..., 1::2] = after.permute(0, 3, 1, 2)
    y = y.transpose(1, 2).contiguous()
    return (y if in_float else y.to(u.dtype)), x


@torch.no_grad()
def backward(
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None,
    delta_bias: Tensor | None,
    dy: Tensor,
    x: Tensor | None,
    delta_softplus: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor | None, Tensor | None]:
    """Return the gradients of u, delta, A, B, C, D and delta_bias, each in the dtype of its tensor, None for None.

    The arguments are those of :func:`forward`; dy is the gradient of y, in its dtype, and x the second result.
    """
    op = "bwd"
    check_tensors(op, {"u": u, "dout": dy})
    check_shape(op, "dout", dy, tuple(u.shape), "u", u)
    given = _arguments(op, u, delta, A, B, C, D, delta_bias, delta_softplus, dy.dtype != u.dtype)
    chunks = ceil_div(u.shape[2], given.chunk)
    if not isinstance(x, Tensor):
        raise TypeError(f"{op}: x is a {type(x).__name__}, expected the second result of fwd")
    check_shape(op, "x", x, (len(u), u.shape[1], max(chunks, 1), 2 * A.shape[1]), "u", u)
    after = x[..., 1::2].permute(0, 2, 3, 1)
    before = torch.cat((torch.zeros_like(after[:, :1]), after[:, :-1]), 1)[:, :chunks]
    dy = dy.to(given.u.dtype).transpose(1, 2)
    results = torch.ops.mmmsv.selective_scan_backward(dy, None, before.flatten(), *given)
    du, ddelta, dB, dC, _, dA, dD, ddelta_bias, _ = results
    du, ddelta = [gradient.transpose(1, 2) for gradient in (du, ddelta)]
    dB, dC = [_of_projection(gradient, like) for gradient, like in ((dB, B), (dC, C))]
    of_D, of_bias = [
        None if weight is None else gradient.to(weight.dtype)
        for weight, gradient in ((D, dD), (delta_bias, ddelta_bias))
    ]
    return du.to(u.dtype), ddelta.to(delta.dtype), dA.to(A.dtype), dB.to(B.dtype), dC.to(C.dtype), of_D, of_bias


def _arguments(
    op: str,
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None,
    delta_bias: Tensor | None,
    delta_softplus: bool,
    in_float: bool,
) -> SelectiveScan:
    """Return the arguments of the op; where B or C is one for all tokens, with a group for each channel."""
    weights = {"D": D, "delta_bias": delta_bias}
    refuse_complex(op, A)
    check_tensors(op, {"u": u, "delta": delta, "A": A, "B": B, "C": C, **_given(weights)})
    check_bool(op, "delta_softplus", delta_softplus)
    groups = check_sequence_shapes(u, delta, A, B, C, D, None, delta_bias, None)
    apart = B.dim() == 2 or C.dim() == 2
    maps = {name: each for name, each in {"u": u, "delta": delta, "B": B, "C": C}.items() if each.dim() > 2}
    dtype = one_dtype(op, maps)[0].dtype
    of_state = state_dtype(u.new_empty(0, dtype=dtype))
    dtype = of_state if in_float or apart else dtype
    u, delta = [each.to(dtype).transpose(1, 2) for each in (u, delta)]
    B, C = [_of_tokens(each.to(dtype), u, u.shape[2] if apart else groups) for each in (B, C)]
    A = A.to(of_state)
    D, delta_bias = [None if each is None else each.to(of_state) for each in weights.values()]
    return SelectiveScan(
        u, delta, B, C, None, A, D, delta_bias, None, delta_softplus, choose_chunk(u.device, A.shape[1])
    )


def _given(optional: dict[str, Tensor | None]) -> dict[str, Tensor]:
    return {name: each for name, each in optional.items() if each is not None}


def _of_tokens(projection: Tensor, u: Tensor, groups: int) -> Tensor:
    """Return B or C as ``(batch, L, groups, N)``."""
    if projection.dim() == 2:
        return projection.expand(*u.shape[:2], -1, -1)
    tokens = (projection.unsqueeze(1) if projection.dim() == 3 else projection).permute(0, 3, 1, 2)
    return tokens if tokens.shape[2] == groups else tokens.repeat_interleave(groups // tokens.shape[2], 2)


def _of_projection(gradient: Tensor, like: Tensor) -> Tensor:
    """Return the gradient of B or C from that of :func:`_of_tokens`."""
    if like.dim() == 2:
        return gradient.sum((0, 1))
    groups = like.shape[1] if like.dim() == 4 else 1
    if gradient.shape[2] != groups:
        gradient = gradient.unflatten(2, (groups, gradient.shape[2] // groups)).sum(3)
    gradient = gradient.permute(0, 2, 3, 1)
    return gradient if like.dim() == 4 else gradient.squeeze(1)
