"""The scan in C++: hands tensors to the library by their addresses."""

import ctypes
import functools
from typing import NamedTuple

import torch
from torch import Tensor

from ...arguments import CHUNK, Scan2d, SelectiveScan, ceil_div
from ...strides import last_axis_innermost
from .library import DTYPES, GROUPS, LANES, loaded_library
from .memory import in_huge_pages

# Channels of a block in a backward pass. Sums over channels are made block by block, so this must not depend on the
# number of threads either; blocks come in pairs, so that two cores share an image evenly.
_BACKWARD_CHANNELS = 64
_FORWARD_CHANNELS = 512


class _PerToken(ctypes.Structure):
    """``PerToken`` of scan.h."""

    _fields_ = [
        ("data", ctypes.c_void_p),
        *((name, ctypes.c_int64) for name in ("batch", "sequence", "route", "row", "column")),
    ]


class _Scan(ctypes.Structure):
    """``Scan`` of scan.h."""

    _integers = (
        *("dtype", "wide", "batch", "height", "width", "channels", "states", "rank", "sequences", "routes"),
        *("one_map", "merge", "shared", "softplus", "blocks", "threads"),
    )
    _fields_ = [
        *((name, ctypes.c_int64) for name in _integers),
        ("route_codes", ctypes.c_void_p),
        *((name, _PerToken) for name in ("x", "dt", "B", "C", "y")),
        ("padded", ctypes.c_int64),
        *((name, ctypes.c_void_p) for name in ("W_dt", "b_dt", "A", "Dskip", "kept")),
        ("z", _PerToken),
        *((name, ctypes.c_void_p) for name in ("entering", "leaving")),
        *((name, _PerToken) for name in ("dy", "dx", "ddelta", "dz")),
        ("padded_rank", ctypes.c_int64),
        ("W_dt_rows", ctypes.c_void_p),
        ("groups", ctypes.c_int64),
        *((name, ctypes.c_void_p) for name in ("token_parts", "weight_parts", "scratch")),
    ]


class _Placed(NamedTuple):
    """A tensor that holds something for each token, channels last, and its strides: ``PerToken`` of scan.h."""

    tensor: Tensor
    batch: int
    sequence: int
    route: int
    row: int
    column: int

    @classmethod
    def of_sequences(cls, tensor: Tensor) -> "_Placed":
        """Place ``(batch, H, W, S, *)``: S is 1, and all sequences share it, or there is one for each sequence."""
        tensor = last_axis_innermost(tensor)
        batch, row, column, sequence, _ = tensor.stride()
        return cls(tensor, batch, sequence if tensor.shape[3] > 1 else 0, 0, row, column)

    @classmethod
    def of_routes(cls, tensor: Tensor) -> "_Placed":
        """Place ``(batch, routes, H, W, D)``, or ``(batch, H, W, D)``, which all routes share."""
        tensor = last_axis_innermost(tensor)
        if tensor.dim() == 4:
            batch, row, column, _ = tensor.stride()
            return cls(tensor, batch, 0, 0, row, column)
        batch, route, row, column, _ = tensor.stride()
        return cls(tensor, batch, 0, route, row, column)

    @property
    def fields(self) -> tuple[int, ...]:
        return (self.tensor.data_ptr(), *self[1:])


class _Ends(NamedTuple):
    """What is at the ends of a 1-D scan: a gate, ``(batch, L, S, D)``, and states, ``(batch, N, S, D)``, contiguous.

    ``dz`` and ``leaving`` are written. In a backward pass, which walks from the last token to the first, the states are
    gradients.
    """

    z: Tensor | None = None
    dz: Tensor | None = None
    entering: Tensor | None = None
    leaving: Tensor | None = None

    def describe(self, problem: _Scan) -> list[_Placed]:
        """Describe them to the library; return what has to live as long as the description."""
        gate = [_Placed.of_sequences(each.unsqueeze(1)) for each in (self.z, self.dz) if each is not None]
        for name, placed in zip(("z", "dz"), gate, strict=False):
            setattr(problem, name, placed.fields)
        for name, state in (("entering", self.entering), ("leaving", self.leaving)):
            setattr(problem, name, None if state is None else state.data_ptr())
        return gate


def selective_scan(given: SelectiveScan) -> tuple[Tensor, Tensor, Tensor]:
    """Compute y, the last state, and the states before each chunk."""
    last = given.A.new_empty(given.last_shape)
    ends = _Ends(given.z, None, None if given.h0 is None else given.h0.contiguous(), last)
    y, states = forward(given.as_maps(), ends)
    return y.permute(0, 2, 3, 1, 4).squeeze(1), last, states


def selective_scan_backward(
    given: SelectiveScan, dy: Tensor, dlast: Tensor | None, states: Tensor
) -> tuple[Tensor | None, ...]:
    """Compute the gradients of the tensors, in their order."""
    dz = None if given.z is None else given.z.new_empty(given.z.shape)
    dh0 = None if given.h0 is None else given.A.new_empty(given.last_shape)
    ends = _Ends(given.z, dz, None if dlast is None else dlast.contiguous(), dh0)
    by_route = dy.unsqueeze(1).permute(0, 3, 1, 2, 4)
    du, ddelta, dB, dC, _, dbias, dA, dD = backward(given.as_maps(), by_route, states, ends)
    return *(each if each is None else each.squeeze(1) for each in (du, ddelta, dB, dC)), dz, dA, dD, dbias, dh0


def forward(scan: Scan2d, ends: _Ends | None = None) -> tuple[Tensor, Tensor]:
    """Compute y and the states before each chunk."""
    if scan.chunk not in (0, CHUNK):
        raise RuntimeError("scan: this program was recorded for a GPU; record it again for a CPU")
    y_dtype, scan = scan.y_dtype, scan.in_one_dtype()
    dtype = scan.map_dtype(scan.x.dtype, scan.merge)
    y = in_huge_pages(scan.new_merged(dtype) if scan.merge else scan.new_routes(dtype))
    states = scan.A.new_empty(scan.states_shape if scan.chunk else 0)
    batch, channels, threads = scan.x.shape[0], scan.x.shape[-1], torch.get_num_threads()
    # Enough for two tasks a thread; each channel is computed alone, so the number changes no bit of the results.
    blocks = max(ceil_div(2 * threads, max(batch, 1)), ceil_div(channels, _FORWARD_CHANNELS))
    problem, _alive = _describe(scan, blocks, threads)
    problem.wide = dtype != scan.x.dtype
    problem.y, problem.kept = _Placed.of_routes(y).fields, states.data_ptr() if scan.chunk else None
    _gate = None if ends is None else ends.describe(problem)
    loaded_library().scan.forward(problem, scan.A)
    return y.to(y_dtype), states


def backward(scan: Scan2d, dy: Tensor, states: Tensor, ends: _Ends | None = None) -> tuple[Tensor | None, ...]:
    """Compute the gradients of the tensors, in their order."""
    scan = scan.in_one_dtype()
    maps = scan.maps
    batch, height, width, _, channels = maps.shape
    sets, _, state = scan.A.shape
    rank = 0 if scan.W_dt is None else scan.W_dt.shape[2]
    groups = min(batch, GROUPS)
    problem, _alive = _describe(scan, 2 * ceil_div(channels, 2 * _BACKWARD_CHANNELS), torch.get_num_threads())
    dx = in_huge_pages(maps.new_empty(maps.shape, dtype=scan.map_dtype(maps.dtype, maps.shape[3] == 1)))
    dy_at = _Placed.of_routes(dy.to(scan.x.dtype))
    problem.wide = dx.dtype != scan.x.dtype
    problem.dy, problem.dx = dy_at.fields, _Placed.of_sequences(dx).fields
    problem.kept = scan.kept_states(states).data_ptr()
    ddelta = in_huge_pages(scan.dt.new_empty(scan.dt.shape if scan.W_dt is None else 0))
    if scan.W_dt is None:
        problem.ddelta = _Placed.of_sequences(ddelta).fields
    else:
        rows = _padded(_padded(scan.W_dt, 2), 1)
        problem.W_dt_rows, problem.padded_rank = rows.data_ptr(), rows.shape[2]
    token_parts = in_huge_pages(scan.A.new_empty(problem.blocks, batch, height, width, sets, rank + 2 * state))
    weight_parts = scan.A.new_zeros(groups, sets, rank + state + 2, problem.padded)
    problem.token_parts, problem.weight_parts, problem.groups = token_parts.data_ptr(), weight_parts.data_ptr(), groups
    _gate = None if ends is None else ends.describe(problem)
    loaded_library().scan.backward(problem, scan.A)

    ddt, dB, dC = token_parts.sum(0).split((rank, state, state), 4)
    weights = weight_parts.sum(0)[..., :channels].transpose(1, 2)
    dW_dt, dA, db_dt, dDskip = weights.split((rank, state, 1, 1), 2)
    ddt = ddelta if scan.W_dt is None else ddt
    return dx.view(scan.x.shape), ddt, dB, dC, dW_dt, db_dt[..., 0], dA, dDskip[..., 0]


def _describe(scan: Scan2d, blocks: int, threads: int) -> tuple[_Scan, tuple[object, ...]]:
    """Describe all but the results to the library; also return what has to live as long as the description."""
    batch, height, width, maps, channels = scan.maps.shape
    sets, _, state = scan.A.shape
    sequences = scan.sequences
    inputs = [_Placed.of_sequences(tensor) for tensor in (scan.maps, scan.dt, scan.B, scan.C)]
    zeros = scan.A.new_zeros(sets, channels)
    b_dt, Dskip = (_padded(zeros if weight is None else weight, 1) for weight in (scan.b_dt, scan.Dskip))
    A = _padded(scan.A.transpose(1, 2), 2)
    W_dt = None if scan.W_dt is None else _padded(scan.W_dt.transpose(1, 2), 2)
    x, dt, B, C = (placed.fields for placed in inputs)
    problem = _Scan(
        dtype=DTYPES.index(scan.x.dtype),
        batch=batch,
        height=height,
        width=width,
        channels=channels,
        states=state,
        rank=0 if W_dt is None else W_dt.shape[1],
        sequences=len(sequences),
        routes=len(sequences[0]),
        one_map=maps == 1,
        merge=scan.merge,
        shared=sets == 1,
        softplus=scan.softplus,
        blocks=max(min(blocks, ceil_div(channels, LANES)), 1),
        threads=threads,
        route_codes=ctypes.addressof(_codes(tuple(scan.route_codes))),
        x=x,
        dt=dt,
        B=B,
        C=C,
        padded=A.shape[2],
        W_dt=None if W_dt is None else W_dt.data_ptr(),
        b_dt=b_dt.data_ptr(),
        A=A.data_ptr(),
        Dskip=Dskip.data_ptr(),
    )
    return problem, (inputs, b_dt, Dskip, A, W_dt)


@functools.cache
def _codes(codes: tuple[int, ...]) -> ctypes.Array:
    """Return the routes as the library reads them; kept, so that their address stays good."""
    return (ctypes.c_int64 * len(codes))(*codes)


def _padded(weight: Tensor, axis: int) -> Tensor:
    """Pad one axis with zeros to whole registers, and make it contiguous."""
    missing = -weight.shape[axis] % LANES
    if missing:
        zeros = weight.new_zeros([missing if i == axis % weight.dim() else n for i, n in enumerate(weight.shape)])
        weight = torch.cat((weight, zeros), axis)
    return weight.contiguous()
