"""The public scan function: checks what it is given, then calls the registered op."""

import torch
from torch import Tensor

from . import library  # noqa: F401  (registers torch.ops.mmmsv.selective_scan)

_FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


def selective_scan(
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None = None,
    delta_bias: Tensor | None = None,
    delta_softplus: bool = False,
) -> Tensor:
    r"""Run the S6 recurrence along the last axis.

    .. math:: h_t = e^{\Delta_t A} h_{t-1} + \Delta_t B_t u_t, \qquad y_t = C_t \cdot h_t + D u_t, \qquad h_{-1} = 0

    with :math:`\Delta = \mathrm{softplus}(\mathtt{delta} + \mathtt{delta\_bias})` where ``delta_softplus`` is set.

    Below, ``batch`` sequences have ``L`` tokens of ``D`` channels; each channel keeps a state of ``N`` numbers, and the
    ``D`` channels share ``G`` sets of B and C in contiguous groups of ``D / G``. Any strides are accepted; the fastest
    layout is channels-last, that is ``(batch, L, D)`` in memory seen through ``.transpose(1, 2)``.

    Args:
        u: Input, ``(batch, D, L)``; float16, bfloat16, float32 or float64.
        delta: Step before bias and softplus, shape and dtype of ``u``.
        A: Decay rate, ``(D, N)``, as a rule negative (a positive one makes the state grow).
        B: Input projection, ``(batch, G, N, L)`` or ``(batch, N, L)`` for one group; dtype of ``u``.
        C: Output projection, shape and dtype of ``B``.
        D: Skip weight, ``(D,)``; none when omitted.
        delta_bias: Added to ``delta`` before the softplus, ``(D,)``.
        delta_softplus: Whether the step goes through a softplus.

    Returns:
        ``(batch, D, L)`` in ``u.dtype``, with the layout of ``u``. The state, ``A`` and the exponential are held in
        float32 (float64 when ``u`` is float64), whatever the dtype of ``u``.

    Raises:
        TypeError: An argument is no floating-point tensor, or its dtype disagrees with ``u``; ``delta_softplus`` is no
            bool.
        ValueError: Shapes or devices disagree; the message names the argument and both shapes.

    Source:
        Mamba, arXiv 2312.00752, Algorithm 2; the arguments are those of mamba-ssm's ``selective_scan_fn``, without
        ``z`` and ``return_last_state``.
    """
    given = {"u": u, "delta": delta, "A": A, "B": B, "C": C, "D": D, "delta_bias": delta_bias}
    given = {name: tensor for name, tensor in given.items() if tensor is not None}
    _check_types(given)
    if not isinstance(delta_softplus, bool):
        raise TypeError(f"selective_scan: delta_softplus is a {type(delta_softplus).__name__}, expected True or False")
    if B.dim() == 3 and C.dim() == 3:
        B, C = B.unsqueeze(1), C.unsqueeze(1)
    _check_shapes(u, delta, A, B, C, D, delta_bias)
    state_dtype = torch.float64 if u.dtype == torch.float64 else torch.float32
    D, delta_bias = (None if weight is None else weight.to(state_dtype) for weight in (D, delta_bias))
    return torch.ops.mmmsv.selective_scan(u, delta, A.to(state_dtype), B, C, D, delta_bias, delta_softplus)


def _check_types(given: dict[str, Tensor]) -> None:
    for name, tensor in given.items():
        if not isinstance(tensor, Tensor):
            raise TypeError(f"selective_scan: {name} is a {type(tensor).__name__}, expected a torch.Tensor")
        if tensor.dtype not in _FLOATS:
            raise TypeError(
                f"selective_scan: {name} is {tensor.dtype}, expected one of float16, bfloat16, float32, float64"
            )
        if tensor.device != given["u"].device:
            raise ValueError(
                f"selective_scan: {name} is on {tensor.device} and u on {given['u'].device}; move both to one device"
            )
    for name in ("delta", "B", "C"):
        if given[name].dtype != given["u"].dtype:
            raise TypeError(f"selective_scan: {name} is {given[name].dtype} and u is {given['u'].dtype}; cast one")


def _check_shapes(
    u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor | None, delta_bias: Tensor | None
) -> None:
    if u.dim() != 3:
        raise ValueError(f"selective_scan: u has shape {tuple(u.shape)}, expected (batch, D, L)")
    batch, channels, length = u.shape
    if A.dim() != 2 or A.shape[0] != channels or A.shape[1] == 0:
        raise ValueError(
            f"selective_scan: A has shape {tuple(A.shape)}, expected (D, N) = ({channels}, N >= 1) for u "
            f"{tuple(u.shape)}"
        )
    if delta.shape != u.shape:
        raise ValueError(f"selective_scan: delta has shape {tuple(delta.shape)}, expected that of u, {tuple(u.shape)}")
    state = A.shape[1]
    for name, tensor in (("B", B), ("C", C)):
        if tensor.dim() != 4 or (tensor.shape[0], *tensor.shape[2:]) != (batch, state, length):
            raise ValueError(
                f"selective_scan: {name} has shape {tuple(tensor.shape)}, expected (batch, G, N, L) = "
                f"({batch}, G, {state}, {length}) for u {tuple(u.shape)} and A {tuple(A.shape)}"
            )
    if B.shape != C.shape:
        raise ValueError(f"selective_scan: B {tuple(B.shape)} and C {tuple(C.shape)} must have one shape")
    groups = B.shape[1]
    if groups == 0 or channels % groups:
        raise ValueError(f"selective_scan: the {groups} groups of B do not divide the D = {channels} channels of u")
    for name, weight in (("D", D), ("delta_bias", delta_bias)):
        if weight is not None and weight.shape != (channels,):
            raise ValueError(f"selective_scan: {name} has shape {tuple(weight.shape)}, expected (D,) = ({channels},)")
