"""The selective scan, along sequences and over maps."""

from collections.abc import Sequence
from typing import Literal, overload

import torch
from torch import Tensor

from . import ops
from .argument_checks import (
    check_bool,
    check_dtype,
    check_map_shapes,
    check_sequence_shapes,
    check_tensors,
    one_dtype,
    refuse_complex,
    route_codes,
    state_dtype,
)
from .arguments import choose_chunk
from .bypass import are_gradients_asked_for
from .constant_projections import scan_with_constants
from .routes import Route


@overload
def selective_scan(
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None = None,
    z: Tensor | None = None,
    delta_bias: Tensor | None = None,
    delta_softplus: bool = False,
    return_last_state: Literal[False] = False,
    h0: Tensor | None = None,
) -> Tensor: ...
@overload
def selective_scan(
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None = None,
    z: Tensor | None = None,
    delta_bias: Tensor | None = None,
    delta_softplus: bool = False,
    *,
    return_last_state: Literal[True],
    h0: Tensor | None = None,
) -> tuple[Tensor, Tensor]: ...
def selective_scan(
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None = None,
    z: Tensor | None = None,
    delta_bias: Tensor | None = None,
    delta_softplus: bool = False,
    return_last_state: bool = False,
    h0: Tensor | None = None,
) -> Tensor | tuple[Tensor, Tensor]:
    r"""Run the S6 recurrence along the last axis.

    .. math::
        h_t = e^{\Delta_t A} h_{t-1} + \Delta_t B_t u_t, \qquad y_t = (C_t \cdot h_t + D u_t)\,\mathrm{SiLU}(z_t),
        \qquad h_{-1} = \mathtt{h0}

    with :math:`\Delta = \mathrm{softplus}(\mathtt{delta} + \mathtt{delta\_bias})` where ``delta_softplus`` is set, and
    without the factor SiLU(z) where there is no ``z``.

    Below, ``batch`` sequences have ``L`` tokens of ``D`` channels; each channel keeps a state of ``N`` numbers, and the
    ``D`` channels share ``G`` sets of B and C in contiguous groups of ``D / G``. Any strides are accepted; the fastest
    layout is channels-last, that is ``(batch, L, D)`` in memory seen through ``.transpose(1, 2)``.

    Args:
        u: Input, ``(batch, D, L)``; float16, bfloat16, float32 or float64.
        delta: Step before bias and softplus, shape and dtype of ``u``.
        A: Decay rate, ``(D, N)``, as a rule negative (a positive one makes the state grow). It is real.
        B: Input projection, ``(batch, G, N, L)`` or ``(batch, N, L)`` for one group, in the dtype of ``u``; or
            ``(D, N)``, one for all tokens, which takes N times the memory and more than N times as long.
        C: Output projection, likewise. B and C of tokens have the same groups.
        D: Skip weight, ``(D,)``; none when omitted.
        z: Gate, shape and dtype of ``u``; none when omitted.
        delta_bias: Added to ``delta`` before the softplus, ``(D,)``.
        delta_softplus: Whether the step goes through a softplus.
        return_last_state: Whether to return the state after the last token, too.
        h0: State before the first token, ``(batch, D, N)``; 0 when omitted. The last state of one call is the h0 of the
            next: a sequence may be scanned piece by piece.

    Returns:
        y, ``(batch, D, L)`` in ``u.dtype``, with the layout of ``u`` unless B or C is ``(D, N)``; with
        ``return_last_state`` also the last state, ``(batch, D, N)``. The state, ``A`` and the exponential are held in
        float32 (float64 when ``u`` is float64), whatever the dtype of ``u``. Both results have gradients with respect
        to every tensor.

    Raises:
        TypeError: An argument is no tensor of real floating-point numbers, or its dtype disagrees with ``u``; a switch
            is no bool.
        ValueError: Shapes or devices disagree; the message names the argument and both shapes.

    Source:
        Mamba, arXiv 2312.00752, Algorithm 2. The arguments are those of mamba-ssm's ``selective_scan_fn``, and h0.
    """
    op = "selective_scan"
    maps, weights = {"u": u, "delta": delta, "B": B, "C": C}, {"D": D, "delta_bias": delta_bias, "h0": h0}
    optional = {name: each for name, each in {"z": z, **weights}.items() if each is not None}
    refuse_complex(op, A)
    check_tensors(op, {**maps, "A": A, **optional})
    check_bool(op, "delta_softplus", delta_softplus)
    check_bool(op, "return_last_state", return_last_state)
    check_sequence_shapes(u, delta, A, B, C, D, z, delta_bias, h0)
    if z is not None:
        maps["z"] = z
    maps = {name: each for name, each in maps.items() if each.dim() > 2}
    # Lists, here and below, and no zip: torch.compile of torch 2.1 traces neither generators nor a strict zip.
    cast = one_dtype(op, maps)
    maps = {name: cast[place] for place, name in enumerate(list(maps))}
    of_each = {"B": B, "C": C, **maps}
    chunk = _chunk(u, A, *of_each.values(), D, delta_bias, h0)

    x, step = [maps[name].transpose(1, 2) for name in ("u", "delta")]
    gate = None if z is None else maps["z"].transpose(1, 2)
    B, C = [_of_tokens(of_each[name]) for name in ("B", "C")]
    start = None if h0 is None else h0.transpose(1, 2)
    compute = scan_with_constants if B.dim() == 2 or C.dim() == 2 else ops.selective_scan
    y, last = compute(x, step, B, C, gate, A, D, delta_bias, start, delta_softplus, chunk)
    y = y.transpose(1, 2)
    return (y, last.transpose(1, 2)) if return_last_state else y


def _of_tokens(projection: Tensor) -> Tensor:
    """View B or C of tokens as ``(batch, L, G, N)``; those of channels, ``(D, N)``, as they are."""
    if projection.dim() == 2:
        return projection
    return (projection.unsqueeze(1) if projection.dim() == 3 else projection).permute(0, 3, 1, 2)


def scan2d(
    x: Tensor,
    dt: Tensor,
    B: Tensor,
    C: Tensor,
    W_dt: Tensor,
    b_dt: Tensor,
    A: Tensor,
    Dskip: Tensor,
    routes: Sequence[Route],
    carry: bool = False,
    merge: bool = True,
    dtype: torch.dtype | None = None,
) -> Tensor:
    r"""Run the S6 recurrence over a map, along one or several routes, the step made from its low-rank form on the way.

    For the tokens t of a route, in its order:

    .. math::
        \Delta_t = \mathrm{softplus}(W_{dt}\, dt_t + b_{dt}), \qquad
        h_t = e^{\Delta_t A} h_{t-1} + \Delta_t B_t x_t, \qquad y_t = C_t \cdot h_t + D_{skip}\, x_t

    Each y is laid onto the map where its x came from. Below, a map has H x W tokens of D channels; each channel keeps a
    state of N numbers; the step has rank R; there are S parameter sets: one for each route, or one that all share. The
    fastest layout is channels-last, that is the shapes below in memory; other strides are accepted.

    Args:
        x: Map, ``(batch, H, W, D)``; float16, bfloat16, float32 or float64.
        dt: Low-rank step of each token for each set, ``(batch, H, W, S, R)``; dtype of ``x``.
        B: Input projection of each token for each set, ``(batch, H, W, S, N)``; dtype of ``x``.
        C: Output projection, shape and dtype of ``B``.
        W_dt: From the low-rank step to that of each channel, ``(S, D, R)``.
        b_dt: Added to the step before the softplus, ``(S, D)``.
        A: Decay rate, ``(S, D, N)``, as a rule negative.
        Dskip: Skip weight, ``(S, D)``.
        routes: One or more of ``'row'`` (row-major), ``'col'`` (column-major), ``'row_rev'`` and ``'col_rev'`` (their
            reversals).
        carry: Whether the state runs on from the end of each route into the start of the next, as if the routes were
            one sequence; needs S = 1. Otherwise each route starts from 0.
        merge: Whether to sum the routes' outputs.
        dtype: Of the result: that of x or that of the state; when omitted, that of x, or under autocast the widest of
            those of x, dt, B and C.

    Returns:
        ``(batch, H, W, D)`` in ``dtype``, or ``(batch, len(routes), H, W, D)`` without ``merge``. The step, the state,
        ``A`` and the exponential are held in float32 (float64 when ``x`` is float64), whatever the dtype of x; backend
        ``triton`` rounds the step before its bias to the dtype of x.

    Raises:
        TypeError: An argument is no floating-point tensor, or its dtype disagrees with ``x``; a switch is no bool;
            ``dtype`` is no dtype of floating-point numbers.
        ValueError: Shapes or devices disagree, a route is unknown, or ``dtype`` is another; the message names the
            argument, and both shapes.

    Source:
        The cross scan and merge of VMamba, arXiv 2401.10166, and the multi-scale scan of MSVMamba, arXiv 2405.14174,
        around Mamba's recurrence (arXiv 2312.00752, Algorithm 2).
    """
    op = "scan2d"
    check_tensors(op, {"x": x, "dt": dt, "B": B, "C": C, "W_dt": W_dt, "b_dt": b_dt, "A": A, "Dskip": Dskip})
    check_bool(op, "carry", carry)
    check_bool(op, "merge", merge)
    codes = route_codes(op, routes)
    check_map_shapes(x, dt, B, C, W_dt, b_dt, A, Dskip, len(codes), carry)
    if dtype is not None:
        check_dtype(op, "dtype", dtype)
        allowed = list(dict.fromkeys((x.dtype, state_dtype(x))))
        if dtype not in allowed:
            raise ValueError(f"{op}: dtype is {dtype}, expected {' or '.join(map(str, allowed))} for x in {x.dtype}")
    chunk = _chunk(x, A, dt, B, C, W_dt, b_dt, Dskip)
    return ops.scan2d(x, dt, B, C, W_dt, b_dt, A, Dskip, codes, carry, merge, True, chunk, dtype)


def _chunk(x: Tensor, A: Tensor, *others: Tensor | None) -> int:
    """Return the tokens of a chunk where gradients may be asked for, else 0: no states are kept."""
    # What torch.jit records may be given them later, and is recorded without to be compared.
    if torch.jit.is_tracing() or are_gradients_asked_for(x, A, *others):
        return choose_chunk(x.device, A.shape[-1])
    return 0
