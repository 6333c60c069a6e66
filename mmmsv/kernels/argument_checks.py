"""Checks of what the public functions are given: types, dtypes, devices, shapes, routes."""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor
from torch.autograd import forward_ad

from mmmsv.compat.torch_versions import is_autocast_enabled

from .bypass import may_carry_tangents
from .routes import ROUTES, Route

_FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
_CODES = {route: code for code, route in enumerate(ROUTES)}


def state_dtype(u: Tensor) -> torch.dtype:
    """Return the dtype of states and sums over a tensor."""
    return torch.float64 if u.dtype == torch.float64 else torch.float32


def check_tensors(op: str, tensors: Mapping[str, Tensor]) -> None:
    """Refuse what is no strided floating-point tensor, carries a tangent, or is on another device than the first.

    Raises:
        TypeError: An argument is no floating-point tensor, or sparse or nested.
        ValueError: Two are on different devices.
        NotImplementedError: A forward-mode derivative is asked for.
    """
    first, may_be_dual = next(iter(tensors)), may_carry_tangents()
    device = None
    for name, tensor in tensors.items():
        if not isinstance(tensor, Tensor):
            raise TypeError(f"{op}: {name} is a {type(tensor).__name__}, expected a torch.Tensor")
        check_dtype(op, name, tensor.dtype)
        if tensor.layout != torch.strided or tensor.is_nested:
            raise TypeError(
                f"{op}: {name} is sparse or nested ({tensor.layout}), expected an ordinary (strided) tensor"
            )
        if may_be_dual and forward_ad.unpack_dual(tensor).tangent is not None:
            raise NotImplementedError(f"{op} has no forward-mode derivative, and {name} carries a tangent (jvp)")
        device = device or tensor.device
        if tensor.device != device:
            raise ValueError(f"{op}: {name} is on {tensor.device} and {first} on {device}; move both to one device")


def check_bool(op: str, name: str, value: bool) -> None:
    """Raise TypeError for what is no bool."""
    if not isinstance(value, bool):
        raise TypeError(f"{op}: {name} is a {type(value).__name__}, expected True or False")


def refuse_complex(op: str, A: Tensor) -> None:
    """Raise TypeError for a complex A, which mamba-ssm takes."""
    if isinstance(A, Tensor) and A.dtype.is_complex:
        raise TypeError(
            f"{op}: A is {A.dtype}, and the states of this scan are real; take a model with a real A (S4D-Real), or "
            "mamba-ssm's own kernel"
        )


def one_dtype(op: str, per_token: Mapping[str, Tensor]) -> list[Tensor]:
    """Return the tensors in one dtype: under autocast the widest of theirs, since it leaves them in different ones.

    Raises:
        TypeError: They have different dtypes, and autocast is off.
    """
    (first, u), *others = per_token.items()
    kind, tensors = u.device.type, list(per_token.values())
    different = [name for name, tensor in others if tensor.dtype != u.dtype]
    if not different:
        return tensors
    if kind != "meta" and is_autocast_enabled(kind):
        # float16 and bfloat16 together are float32, too.
        widest = torch.float64 if any(tensor.dtype == torch.float64 for tensor in tensors) else torch.float32
        return [tensor.to(widest) for tensor in tensors]
    name = different[0]
    raise TypeError(f"{op}: {name} is {per_token[name].dtype} and {first} is {u.dtype}; cast one")


def route_codes(op: str, routes: Sequence[Route]) -> list[int]:
    """Return the places of routes in ``ROUTES``.

    Raises:
        TypeError: ``routes`` is no sequence of routes.
        ValueError: It is empty, or holds something else.
    """
    if isinstance(routes, str) or not isinstance(routes, Sequence):
        raise TypeError(f"{op}: routes is {routes!r}, expected a tuple of routes out of {ROUTES}")
    for route in routes:
        if not isinstance(route, str) or route not in ROUTES:
            raise ValueError(f"{op}: routes holds {route!r}, expected one or more of {ROUTES}")
    if not routes:
        raise ValueError(f"{op}: routes is empty, expected one or more of {ROUTES}")
    return [_CODES[route] for route in routes]


def check_dtype(op: str, name: str, dtype: object) -> None:
    """Raise TypeError for what is no dtype of a tensor that the ops take."""
    if dtype not in _FLOATS:
        raise TypeError(f"{op}: {name} is {dtype!r}, expected one of float16, bfloat16, float32, float64")


def check_channels(op: str, name: str, x: Tensor) -> int:
    """Return the channels of a map; raise ValueError for another shape than ``(batch, H, W, D)``."""
    if x.dim() != 4:
        raise _misshapen(op, name, x, "(batch, H, W, D)")
    return x.shape[3]


def check_shape(op: str, name: str, tensor: Tensor, shape: tuple[int, ...], of: str, x: Tensor) -> None:
    """Raise ValueError for another shape than that which belongs to x, the argument ``of``."""
    if tensor.shape != shape:
        raise _misshapen(op, name, tensor, f"{shape} for {of} {tuple(x.shape)}")


def check_sequence_shapes(
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None,
    z: Tensor | None,
    delta_bias: Tensor | None,
    h0: Tensor | None,
) -> int:
    """Return the groups; raise ValueError where the shapes of the arguments of ``selective_scan`` disagree."""
    op = "selective_scan"
    if u.dim() != 3:
        raise _misshapen(op, "u", u, "(batch, D, L)")
    batch, channels, length = u.shape
    if A.dim() != 2 or A.shape[0] != channels or A.shape[1] == 0:
        raise _misshapen(op, "A", A, f"(D, N) = ({channels}, N >= 1) for u (batch, D, L) = {tuple(u.shape)}")
    state = A.shape[1]
    for name, tensor in (("delta", delta), ("z", z)):
        if tensor is not None and tensor.shape != u.shape:
            raise _misshapen(op, name, tensor, f"that of u, {tuple(u.shape)}")
    groups = None
    for name, tensor in (("B", B), ("C", C)):
        axes = tensor.dim()
        if axes == 2 and tensor.shape == A.shape:
            continue
        if axes not in (3, 4) or (tensor.shape[0], *tensor.shape[-2:]) != (batch, state, length):
            of_tokens = f"(batch, G, N, L) = ({batch}, G, {state}, {length}), or that without G"
            of_channels = f"or (D, N) = ({channels}, {state})"
            of = f"for u {tuple(u.shape)} and A {tuple(A.shape)}"
            raise _misshapen(op, name, tensor, f"{of_tokens}, {of_channels}, {of}")
        own = tensor.shape[1] if axes == 4 else 1
        if groups is not None and groups != own:
            raise ValueError(f"{op}: B {tuple(B.shape)} and C {tuple(C.shape)} must have one number of groups")
        groups = own
    groups = 1 if groups is None else groups
    if groups == 0 or channels % groups:
        raise ValueError(f"{op}: the {groups} groups of B and C do not divide the D = {channels} channels of u")
    for name, weight in (("D", D), ("delta_bias", delta_bias)):
        if weight is not None and weight.shape != (channels,):
            raise _misshapen(op, name, weight, f"(D,) = ({channels},)")
    if h0 is not None and h0.shape != (batch, channels, state):
        raise _misshapen(op, "h0", h0, f"(batch, D, N) = {(batch, channels, state)}")
    return groups


def check_map_shapes(
    x: Tensor,
    dt: Tensor,
    B: Tensor,
    C: Tensor,
    W_dt: Tensor,
    b_dt: Tensor,
    A: Tensor,
    Dskip: Tensor,
    routes: int,
    carry: bool,
) -> None:
    """Raise ValueError where the shapes of the arguments of ``scan2d`` disagree."""
    op = "scan2d"
    channels = check_channels(op, "x", x)
    tokens = x.shape[:3]
    if A.dim() != 3 or A.shape[0] == 0 or A.shape[1] != channels or A.shape[2] == 0:
        raise _misshapen(op, "A", A, f"(S, D, N) = (S >= 1, {channels}, N >= 1) for x {tuple(x.shape)}")
    sets, _, state = A.shape
    if sets not in ((1,) if carry else (1, routes)):
        allowed = "1, since the state is carried over" if carry else f"1, or one for each route ({routes})"
        raise ValueError(f"{op}: A {tuple(A.shape)} holds {sets} parameter sets, expected {allowed}")
    if W_dt.dim() != 3 or W_dt.shape[:2] != A.shape[:2] or W_dt.shape[2] == 0:
        raise _misshapen(op, "W_dt", W_dt, f"(S, D, R) = ({sets}, {channels}, R >= 1) for A {tuple(A.shape)}")
    for name, weight in (("b_dt", b_dt), ("Dskip", Dskip)):
        if weight.shape != (sets, channels):
            raise _misshapen(op, name, weight, f"(S, D) = {(sets, channels)} for A {tuple(A.shape)}")
    for name, tensor, letter, last in (("dt", dt, "R", W_dt.shape[2]), ("B", B, "N", state), ("C", C, "N", state)):
        if tensor.shape != (*tokens, sets, last):
            weight_shape = f"W_dt {tuple(W_dt.shape)}" if letter == "R" else f"A {tuple(A.shape)}"
            expected = f"(batch, H, W, S, {letter}) = {(*tokens, sets, last)} for x {tuple(x.shape)}"
            raise _misshapen(op, name, tensor, f"{expected} and {weight_shape}")


def _misshapen(op: str, name: str, tensor: Tensor, expected: str) -> ValueError:
    return ValueError(f"{op}: {name} has shape {tuple(tensor.shape)}, expected {expected}")
