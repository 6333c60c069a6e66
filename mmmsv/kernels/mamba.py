"""The functions of mamba-ssm's interface, made of this package's scan: import them in the place of that package's.

Names, arguments, shapes and dtypes are those of ``mamba_ssm.ops.selective_scan_interface``, of Vim's copy of it, of
``mamba_ssm.ops.triton.selective_state_update`` and of causal-conv1d. There is no build, CPUs run them, and gradients
come from autograd. States are real: a complex A is refused.
"""

import torch
from torch import Tensor
from torch.nn import functional as F

from .argument_checks import check_bool, check_tensors, refuse_complex, state_dtype
from .causal_conv1d import causal_conv1d_fn, causal_conv1d_update, convolve
from .scan import selective_scan
from .state_update import selective_state_update

__all__ = [
    "bimamba_inner_fn",
    "causal_conv1d_fn",
    "causal_conv1d_update",
    "mamba_inner_fn",
    "mamba_inner_fn_no_out_proj",
    "mamba_inner_ref",
    "selective_scan_fn",
    "selective_scan_ref",
    "selective_state_update",
]


def selective_scan_fn(
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
) -> Tensor | tuple[Tensor, Tensor]:
    """Run the S6 recurrence along the last axis, as :func:`mmmsv.kernels.selective_scan` does, which has the equation.

    Here u, delta, B, C and z may have different dtypes: all are then cast to float32, or to float64 if one is that.

    Args:
        u: Input, ``(batch, D, L)``.
        delta: Step before bias and softplus, ``(batch, D, L)``.
        A: Decay rate, ``(D, N)``.
        B: Input projection, ``(batch, G, N, L)``, ``(batch, N, L)`` or ``(D, N)``.
        C: Output projection, likewise.
        D: Skip weight, ``(D,)``.
        z: Gate, ``(batch, D, L)``.
        delta_bias: ``(D,)``.
        delta_softplus: Whether the step goes through a softplus.
        return_last_state: Whether to return the last state, too.

    Returns:
        y, ``(batch, D, L)`` in ``u.dtype``; with ``return_last_state`` also the last state, ``(batch, D, N)``, in
        float32 or float64. Both have gradients (in mamba-ssm the last state has none).

    Raises:
        TypeError: An argument is no tensor of real floating-point numbers; a switch is no bool.
        ValueError: Shapes or devices disagree; the message names the argument and both shapes.

    Source:
        Mamba, arXiv 2312.00752, Algorithm 2.
    """
    refuse_complex("selective_scan_fn", A)
    y, last = _scan("selective_scan_fn", u, delta, A, B, C, D, z, delta_bias, delta_softplus)
    check_bool("selective_scan_fn", "return_last_state", return_last_state)
    return (y, last) if return_last_state else y


# That package's names for its slow versions.
selective_scan_ref = selective_scan_fn


def _scan(
    op: str,
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None,
    z: Tensor | None,
    delta_bias: Tensor | None,
    delta_softplus: bool,
) -> tuple[Tensor, Tensor]:
    given = {"u": u, "delta": delta, "B": B, "C": C}
    if z is not None:
        given["z"] = z
    check_tensors(op, given)
    dtypes = [each.dtype for each in given.values() if each.dim() > 2]
    if [dtype for dtype in dtypes if dtype != u.dtype]:
        widest = torch.float64 if torch.float64 in dtypes else torch.float32
        given = {name: each.to(widest) for name, each in given.items()}
    y, last = selective_scan(
        **given, A=A, D=D, delta_bias=delta_bias, delta_softplus=delta_softplus, return_last_state=True
    )
    return y.to(u.dtype), last


def mamba_inner_fn(
    xz: Tensor,
    conv1d_weight: Tensor,
    conv1d_bias: Tensor | None,
    x_proj_weight: Tensor,
    delta_proj_weight: Tensor,
    out_proj_weight: Tensor,
    out_proj_bias: Tensor | None,
    A: Tensor,
    B: Tensor | None = None,
    C: Tensor | None = None,
    D: Tensor | None = None,
    delta_bias: Tensor | None = None,
    B_proj_bias: Tensor | None = None,
    C_proj_bias: Tensor | None = None,
    delta_softplus: bool = True,
    checkpoint_lvl: int = 1,
    b_rms_weight: Tensor | None = None,
    c_rms_weight: Tensor | None = None,
    dt_rms_weight: Tensor | None = None,
    b_c_dt_rms_eps: float = 1e-6,
) -> Tensor:
    r"""Compute a Mamba block between its input projection and its result.

    .. math::
        u = \mathrm{SiLU}(\mathrm{conv}(x)), \quad (r, B, C) = W_x u, \quad \Delta = W_\Delta r, \quad
        y = W_o\, \mathrm{scan}(u, \Delta, A, B, C, D, z) + b_o

    Under autocast the products of matrices are computed in its dtype, as all of torch's; the convolution and the scan
    are not.

    Args:
        xz: x and z, ``(batch, 2 D, L)``.
        conv1d_weight: ``(D, 1, W)``.
        conv1d_bias: ``(D,)``.
        x_proj_weight: ``(R + N + N, D)``; the N rows for a B or C that is given are left out.
        delta_proj_weight: ``(D, R)``.
        out_proj_weight: ``(E, D)``.
        out_proj_bias: ``(E,)``.
        A: Decay rate, ``(D, N)``.
        B: In the place of that of each token, as :func:`selective_scan_fn` takes it.
        C: Likewise.
        D: Skip weight, ``(D,)``.
        delta_bias: ``(D,)``.
        B_proj_bias: Added to the B of each token, ``(N,)``.
        C_proj_bias: Added to the C of each token, ``(N,)``.
        delta_softplus: Whether the step goes through a softplus.
        checkpoint_lvl: 0 or 1, without a difference: autograd keeps what it keeps, and :mod:`torch.utils.checkpoint`
            keeps less.
        b_rms_weight: Weight of an RMSNorm of B, ``(N,)``; no norm when omitted.
        c_rms_weight: Weight of an RMSNorm of C, ``(N,)``.
        dt_rms_weight: Weight of an RMSNorm of the step, after its projection and before ``delta_bias``, ``(D,)``.
        b_c_dt_rms_eps: Added to the mean squares in these norms.

    Returns:
        ``(batch, L, E)``.

    Raises:
        TypeError: An argument is no tensor of real floating-point numbers.
        ValueError: Shapes or devices disagree, or ``checkpoint_lvl`` is another.

    Source:
        Mamba, arXiv 2312.00752, Section 3.4. The norms are those of Falcon Mamba.
    """
    op = "mamba_inner_fn"
    if checkpoint_lvl not in (0, 1):
        raise ValueError(f"{op}: checkpoint_lvl is {checkpoint_lvl!r}, expected 0 or 1")
    u, delta, B, C, z = _project(
        op, xz, conv1d_weight, conv1d_bias, x_proj_weight, delta_proj_weight, A, B, C, B_proj_bias, C_proj_bias
    )
    if dt_rms_weight is not None:
        delta = _rms_norm(op, "dt_rms_weight", delta, dt_rms_weight, b_c_dt_rms_eps)
    if b_rms_weight is not None:
        B = _rms_norm(op, "b_rms_weight", B, b_rms_weight, b_c_dt_rms_eps)
    if c_rms_weight is not None:
        C = _rms_norm(op, "c_rms_weight", C, c_rms_weight, b_c_dt_rms_eps)
    y, _ = _scan(op, u, delta, A, B, C, D, z, delta_bias, delta_softplus)
    return _project_out(op, y, out_proj_weight, out_proj_bias)


mamba_inner_ref = mamba_inner_fn


def mamba_inner_fn_no_out_proj(
    xz: Tensor,
    conv1d_weight: Tensor,
    conv1d_bias: Tensor | None,
    x_proj_weight: Tensor,
    delta_proj_weight: Tensor,
    A: Tensor,
    B: Tensor | None = None,
    C: Tensor | None = None,
    D: Tensor | None = None,
    delta_bias: Tensor | None = None,
    B_proj_bias: Tensor | None = None,
    C_proj_bias: Tensor | None = None,
    delta_softplus: bool = True,
) -> Tensor:
    """Return the result of the scan in :func:`mamba_inner_fn`, ``(batch, D, L)``, as Vim's blocks of type v2 take it.

    The arguments and errors are those of :func:`mamba_inner_fn`. Source: Vision Mamba, arXiv 2401.09417.
    """
    op = "mamba_inner_fn_no_out_proj"
    u, delta, B, C, z = _project(
        op, xz, conv1d_weight, conv1d_bias, x_proj_weight, delta_proj_weight, A, B, C, B_proj_bias, C_proj_bias
    )
    y, _ = _scan(op, u, delta, A, B, C, D, z, delta_bias, delta_softplus)
    return y


def bimamba_inner_fn(
    xz: Tensor,
    conv1d_weight: Tensor,
    conv1d_bias: Tensor | None,
    x_proj_weight: Tensor,
    delta_proj_weight: Tensor,
    out_proj_weight: Tensor,
    out_proj_bias: Tensor | None,
    A: Tensor,
    A_b: Tensor,
    B: Tensor | None = None,
    C: Tensor | None = None,
    D: Tensor | None = None,
    delta_bias: Tensor | None = None,
    B_proj_bias: Tensor | None = None,
    C_proj_bias: Tensor | None = None,
    delta_softplus: bool = True,
) -> Tensor:
    """Return :func:`mamba_inner_fn` of the sum of two scans, as Vim's blocks of type v1 take it: one each way.

    The one from the last token to the first decays by ``A_b``, ``(D, N)``; they share all other arguments, which are
    those of :func:`mamba_inner_fn`, as are the errors. Source: Vision Mamba, arXiv 2401.09417.
    """
    op = "bimamba_inner_fn"
    refuse_complex(op, A_b)
    u, delta, B, C, z = _project(
        op, xz, conv1d_weight, conv1d_bias, x_proj_weight, delta_proj_weight, A, B, C, B_proj_bias, C_proj_bias
    )
    forth, _ = _scan(op, u, delta, A, B, C, D, z, delta_bias, delta_softplus)
    B, C = [each.flip(-1) if each.dim() > 2 else each for each in (B, C)]
    back, _ = _scan(op, u.flip(-1), delta.flip(-1), A_b, B, C, D, z.flip(-1), delta_bias, delta_softplus)
    return _project_out(op, forth + back.flip(-1), out_proj_weight, out_proj_bias)


def _project(
    op: str,
    xz: Tensor,
    conv1d_weight: Tensor,
    conv1d_bias: Tensor | None,
    x_proj_weight: Tensor,
    delta_proj_weight: Tensor,
    A: Tensor,
    B: Tensor | None,
    C: Tensor | None,
    B_proj_bias: Tensor | None,
    C_proj_bias: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Return u, delta, B, C and z of the scan in a block."""
    refuse_complex(op, A)
    given = {"xz": xz, "x_proj_weight": x_proj_weight, "delta_proj_weight": delta_proj_weight, "A": A}
    check_tensors(op, {**given, "conv1d_weight": conv1d_weight})
    channels, state = A.shape if A.dim() == 2 else (0, 0)
    if xz.dim() != 3 or A.dim() != 2 or xz.shape[1] != 2 * channels:
        raise ValueError(
            f"{op}: xz has shape {tuple(xz.shape)} and A {tuple(A.shape)}, expected (batch, 2 D, L) and (D, N)"
        )
    if conv1d_weight.dim() != 3 or conv1d_weight.shape[:2] != (channels, 1):
        raise ValueError(
            f"{op}: conv1d_weight has shape {tuple(conv1d_weight.shape)}, expected (D, 1, W) = ({channels}, 1, W)"
        )
    if delta_proj_weight.dim() != 2 or delta_proj_weight.shape[0] != channels:
        raise ValueError(
            f"{op}: delta_proj_weight has shape {tuple(delta_proj_weight.shape)}, expected (D, R) = ({channels}, R)"
        )
    rank = delta_proj_weight.shape[1]
    sizes = [rank, *(state for each in (B, C) if each is None)]
    if x_proj_weight.shape != (sum(sizes), channels):
        raise ValueError(
            f"{op}: x_proj_weight has shape {tuple(x_proj_weight.shape)}, expected {(sum(sizes), channels)}: "
            f"R = {rank} rows for the step, N = {state} for each of B and C that is not given, D = {channels} columns"
        )
    x, z = xz.chunk(2, 1)
    u, _ = convolve(op, x, conv1d_weight.squeeze(1), conv1d_bias, None, "silu")
    # Channels-last, for the products of matrices and the scan alike.
    tokens = u.transpose(1, 2).contiguous()
    parts = F.linear(tokens, x_proj_weight).split(sizes, 2)
    delta = F.linear(parts[0], delta_proj_weight).transpose(1, 2)
    B = _with_bias(op, "B_proj_bias", parts[1], B_proj_bias) if B is None else B
    C = _with_bias(op, "C_proj_bias", parts[-1], C_proj_bias) if C is None else C
    return tokens.transpose(1, 2), delta, B, C, z


def _project_out(op: str, y: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """Return ``(batch, L, E)`` for the result of the scan, ``(batch, D, L)``."""
    check_tensors(op, {"xz": y, "out_proj_weight": weight})
    if weight.dim() != 2 or weight.shape[1] != y.shape[1]:
        raise ValueError(f"{op}: out_proj_weight has shape {tuple(weight.shape)}, expected (E, D) = (E, {y.shape[1]})")
    return F.linear(y.transpose(1, 2), weight, bias)


def _with_bias(op: str, name: str, projection: Tensor, bias: Tensor | None) -> Tensor:
    """Return ``(batch, L, N)`` with a bias, as ``(batch, N, L)``."""
    if bias is not None and bias.shape != projection.shape[2:]:
        raise ValueError(f"{op}: {name} has shape {tuple(bias.shape)}, expected (N,) = ({projection.shape[2]},)")
    return (projection if bias is None else projection + bias.to(projection.dtype)).transpose(1, 2)


def _rms_norm(op: str, name: str, x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """Return the RMSNorm of x over its axis before the last one, that of tokens."""
    if x.dim() < 3 or weight.shape != x.shape[-2:-1]:
        raise ValueError(f"{op}: {name} has shape {tuple(weight.shape)}, and what it normalises {tuple(x.shape)}")
    wide = x.to(state_dtype(x))
    normed = wide * torch.rsqrt(wide.square().mean(-2, keepdim=True) + eps)
    return (normed * weight.unsqueeze(-1)).to(x.dtype)
