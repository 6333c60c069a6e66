"""One step of a scan, for generation token by token."""

import torch
from torch import Tensor
from torch.nn import functional as F

from .argument_checks import check_bool, check_tensors, refuse_complex, state_dtype
from .state_rows import rows_of, write_rows


@torch.no_grad()
def selective_state_update(
    state: Tensor,
    x: Tensor,
    dt: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None = None,
    z: Tensor | None = None,
    dt_bias: Tensor | None = None,
    dt_softplus: bool = False,
    state_batch_indices: Tensor | None = None,
) -> Tensor:
    r"""Take the state of a scan one token further, in place, and return y of that token.

    .. math::
        h \leftarrow e^{\Delta A} h + \Delta B x, \qquad y = (C \cdot h + D x)\,\mathrm{SiLU}(z)

    with :math:`\Delta = \mathrm{softplus}(\mathtt{dt} + \mathtt{dt\_bias})` where ``dt_softplus`` is set. This is for
    generation, token by token: nothing has gradients.

    Args:
        state: ``(batch, D, N)``, or with H heads of D channels each ``(batch, H, D, N)``; changed in place.
        x: ``(batch, D)`` or ``(batch, H, D)``.
        dt: Shape of ``x``.
        A: ``(D, N)`` or ``(H, D, N)``.
        B: ``(batch, N)``, or with heads ``(batch, G, N)``: G groups of H / G heads share one.
        C: Shape of ``B``.
        D: ``(D,)`` or ``(H, D)``.
        z: Gate, shape of ``x``.
        dt_bias: ``(D,)`` or ``(H, D)``.
        dt_softplus: Whether the step goes through a softplus.
        state_batch_indices: Row of ``state`` for each row of x, ``(batch,)``, integers: ``state`` may have any number
            of rows then. A row at a negative index is padding, whose result is 0.

    Returns:
        y, shape and dtype of ``x``; sums are in float32, in float64 where ``x`` or ``state`` is.

    Raises:
        TypeError: An argument is no tensor of real floating-point numbers (of integers, for the indices).
        ValueError: Shapes or devices disagree.

    Source:
        Mamba, arXiv 2312.00752, Algorithm 2, one step.
    """
    op = "selective_state_update"
    refuse_complex(op, A)
    check_bool(op, "dt_softplus", dt_softplus)
    optional = {"D": D, "z": z, "dt_bias": dt_bias}
    given = {"state": state, "x": x, "dt": dt, "A": A, "B": B, "C": C}
    given |= {name: each for name, each in optional.items() if each is not None}
    check_tensors(op, given)
    if state.dim() not in (3, 4) or x.dim() != state.dim() - 1:
        raise ValueError(f"{op}: state has shape {tuple(state.shape)}, expected (batch, D, N) or (batch, H, D, N)")
    batch, (*heads, dim, number) = len(x), state.shape[1:]
    of_groups = list(B.shape[1:-1])
    shapes = {"x": (batch, *heads, dim), "dt": (batch, *heads, dim), "A": (*heads, dim, number)}
    shapes |= {"B": (batch, *of_groups, number), "C": (batch, *of_groups, number), "z": (batch, *heads, dim)}
    shapes |= {"D": (*heads, dim), "dt_bias": (*heads, dim)}
    for name, each in given.items():
        if name != "state" and each.shape != shapes[name]:
            expected = f"{shapes[name]} for state {tuple(state.shape)}"
            raise ValueError(f"{op}: {name} has shape {tuple(each.shape)}, expected {expected}")
    groups = of_groups[0] if len(of_groups) == 1 else 1
    if len(of_groups) > len(heads) or groups == 0 or (heads and heads[0] % groups):
        raise ValueError(f"{op}: B has shape {tuple(B.shape)}, and its groups do not divide state {tuple(state.shape)}")
    rows = rows_of(op, "state", state, "state_batch_indices", state_batch_indices, batch)
    if len(rows) != batch:
        raise ValueError(f"{op}: state has {len(rows)} rows and x {batch}; pass state_batch_indices, or one for each")

    dtype = torch.promote_types(state_dtype(x), state_dtype(state))
    wide = {name: each.to(dtype) for name, each in given.items()}
    step = wide["dt"] + wide.get("dt_bias", 0)
    step = (F.softplus(step) if dt_softplus else step).unsqueeze(-1)
    if of_groups:
        wide |= {name: wide[name].repeat_interleave(heads[0] // groups, 1) for name in ("B", "C")}
    B, C = [(wide[name] if of_groups or not heads else wide[name].unsqueeze(1)).unsqueeze(-2) for name in ("B", "C")]
    new = rows.to(dtype) * torch.exp(step * wide["A"]) + step * B * wide["x"].unsqueeze(-1)
    write_rows(state, new, state_batch_indices)
    y = (new * C).sum(-1) + wide["x"] * wide.get("D", 0)
    if z is not None:
        y = y * F.silu(wide["z"])
    if state_batch_indices is not None:
        y = torch.where((state_batch_indices < 0).view(-1, *(1,) * (y.dim() - 1)), 0, y)
    return y.to(x.dtype)
