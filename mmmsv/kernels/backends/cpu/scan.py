"""Backend ``cpu``: hands tensors to the C++ library of ``csrc/`` by their addresses.

The library has one entry for both ops: a 1-D scan is a scan over a map of one row, each group of B and C a sequence
with channels and a parameter set of its own, and its step given instead of made.
"""

import ctypes
import functools
from typing import NamedTuple

import torch
from torch import Tensor

from ...backend import Backend
from ...scan_arguments import Scan1d, Scan2d
from ..strides import ceil_div, laid_out_as, last_axis_innermost
from .library import DTYPES, GROUPS, LANES, new, run, why_not

# Channels of a block in a backward pass. Sums over channels are made block by block, so this must not depend on the
# number of threads either; blocks come in pairs, so that two cores share an image evenly.
_BACKWARD_CHANNELS = 64
_FORWARD_CHANNELS = 512


class _PerToken(ctypes.Structure):
    """``PerToken`` of scan.cpp."""

    _fields_ = [
        ("data", ctypes.c_void_p),
        *((name, ctypes.c_int64) for name in ("batch", "sequence", "route", "row", "column")),
    ]


class _Scan(ctypes.Structure):
    """``Scan`` of scan.cpp."""

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
        *((name, _PerToken) for name in ("dy", "dx", "ddelta")),
        ("padded_rank", ctypes.c_int64),
        ("W_dt_rows", ctypes.c_void_p),
        ("groups", ctypes.c_int64),
        *((name, ctypes.c_void_p) for name in ("token_parts", "weight_parts", "scratch")),
    ]


class _Placed(NamedTuple):
    """A tensor that holds something for each token, channels last, and its strides: ``PerToken`` of scan.cpp."""

    tensor: Tensor
    batch: int
    sequence: int
    route: int
    row: int
    column: int

    @property
    def fields(self) -> tuple[int, ...]:
        return (self.tensor.data_ptr(), *self[1:])


def _of_map(tensor: Tensor) -> _Placed:
    """Place ``(batch, H, W, D)``, which all sequences share."""
    batch, row, column, _ = tensor.stride()
    return _Placed(tensor, batch, 0, 0, row, column)


def _of_routes(tensor: Tensor) -> _Placed:
    """Place ``(batch, routes, H, W, D)``."""
    batch, route, row, column, _ = tensor.stride()
    return _Placed(tensor, batch, 0, route, row, column)


def _of_sets(tensor: Tensor) -> _Placed:
    """Place ``(batch, H, W, S, R)``: S is 1, and all sequences share it, or there is one for each sequence."""
    batch, row, column, sequence, _ = tensor.stride()
    return _Placed(tensor, batch, sequence if tensor.shape[3] > 1 else 0, 0, row, column)


def _of_groups(tensor: Tensor, groups: int) -> _Placed:
    """Place ``(batch, L, groups * D)``: a map of one row, each group a sequence."""
    batch, column, _ = tensor.stride()
    return _Placed(tensor, batch, tensor.shape[2] // groups, 0, 0, column)


class _Problem(NamedTuple):
    """Either op as the library sees it: sequences of routes over a map."""

    size: tuple[int, int, int, int]  # batch, H, W, and the channels D of a sequence
    x: _Placed
    dt: _Placed  # R numbers a token; without W_dt the step of each channel
    B: _Placed
    C: _Placed
    W_dt: Tensor | None  # (S, D, R)
    b_dt: Tensor  # (S, D)
    A: Tensor  # (S, D, N)
    Dskip: Tensor  # (S, D)
    sequences: tuple[tuple[int, ...], ...]
    one_map: bool  # the sequences read one map, so gradients of its tokens are sums over them
    merge: bool
    softplus: bool

    @classmethod
    def of_1d(cls, scan: Scan1d) -> "_Problem":
        (batch, channels, length), groups = scan.u.shape, scan.B.shape[1]
        channels //= groups
        zero = scan.A.new_zeros(groups, channels)
        projections = []
        for tensor in (scan.B, scan.C):
            rows = last_axis_innermost(tensor.transpose(2, 3))
            projections.append(_Placed(rows, *rows.stride()[:2], 0, 0, rows.stride(2)))
        return cls(
            size=(batch, 1, length, channels),
            x=_of_groups(last_axis_innermost(scan.u.transpose(1, 2)), groups),
            dt=_of_groups(last_axis_innermost(scan.delta.transpose(1, 2)), groups),
            B=projections[0],
            C=projections[1],
            W_dt=None,
            b_dt=zero if scan.delta_bias is None else scan.delta_bias.view(groups, channels),
            A=scan.A.unflatten(0, (groups, channels)),
            Dskip=zero if scan.D is None else scan.D.view(groups, channels),
            sequences=((0,),) * groups,
            one_map=False,
            merge=False,
            softplus=scan.delta_softplus,
        )

    @classmethod
    def of_2d(cls, scan: Scan2d) -> "_Problem":
        codes = tuple(scan.route_codes)
        return cls(
            size=tuple(scan.x.shape),
            x=_of_map(last_axis_innermost(scan.x)),
            dt=_of_sets(last_axis_innermost(scan.dt)),
            B=_of_sets(last_axis_innermost(scan.B)),
            C=_of_sets(last_axis_innermost(scan.C)),
            W_dt=scan.W_dt,
            b_dt=scan.b_dt,
            A=scan.A,
            Dskip=scan.Dskip,
            sequences=(codes,) if scan.carry else tuple((code,) for code in codes),
            one_map=True,
            merge=scan.merge,
            softplus=True,
        )

    @property
    def rank(self) -> int:
        return 0 if self.W_dt is None else self.W_dt.shape[2]

    def forward(self, y: _Placed, states: Tensor) -> None:
        """Fill y and the states."""
        batch, *_, channels = self.size
        threads = torch.get_num_threads()
        # Enough for two tasks a thread; each channel is computed alone, so the number changes no bit of the results.
        blocks = max(ceil_div(2 * threads, max(batch, 1)), ceil_div(channels, _FORWARD_CHANNELS))
        scan, _weights = self._describe(blocks, threads)  # which must live until the end
        scan.wide = y.tensor.dtype != self.x.tensor.dtype
        scan.y, scan.kept = y.fields, states.data_ptr()
        run("scan", "forward", scan, self.A)

    def backward(self, dy: _Placed, states: Tensor, dx: _Placed, ddelta: _Placed | None) -> tuple[Tensor, Tensor]:
        """Fill dx, and ddelta where the step was given.

        Args:
            dy: As y of :meth:`forward`.
            states: Those that it filled.
            dx: Gradient of x.
            ddelta: Gradient of dt; None where the step was made from its low rank.

        Returns:
            The gradients of dt, B and C, ``(batch, H, W, S, R + 2 N)``, dt's being empty where the step was given, and
            those of W_dt, A, b_dt and Dskip, ``(S, R + N + 2, D)``.
        """
        batch, height, width, channels = self.size
        sets, _, state = self.A.shape
        groups = min(batch, GROUPS)
        scan, _weights = self._describe(2 * ceil_div(channels, 2 * _BACKWARD_CHANNELS), torch.get_num_threads())
        scan.wide = dx.tensor.dtype != self.x.tensor.dtype
        scan.dy, scan.dx, scan.kept = dy.fields, dx.fields, states.data_ptr()
        if ddelta is not None:
            scan.ddelta = ddelta.fields
        else:
            rows = _padded(_padded(self.W_dt, 2), 1)
            scan.W_dt_rows, scan.padded_rank = rows.data_ptr(), rows.shape[2]
        token_parts = new(self.A, (scan.blocks, batch, height, width, sets, self.rank + 2 * state))
        weight_parts = self.A.new_zeros(groups, sets, self.rank + state + 2, scan.padded)
        scan.groups, scan.token_parts, scan.weight_parts = groups, token_parts.data_ptr(), weight_parts.data_ptr()
        run("scan", "backward", scan, self.A)
        return token_parts.sum(0), weight_parts.sum(0)[..., :channels]

    def _describe(self, blocks: int, threads: int) -> tuple[_Scan, tuple[Tensor, ...]]:
        """Describe all but the results to the library; also return the weights as it reads them."""
        batch, height, width, channels = self.size
        sets, _, state = self.A.shape
        b_dt, Dskip = _padded(self.b_dt, 1), _padded(self.Dskip, 1)
        A = _padded(self.A.transpose(1, 2), 2)
        W_dt = None if self.W_dt is None else _padded(self.W_dt.transpose(1, 2), 2)
        scan = _Scan(
            dtype=DTYPES.index(self.x.tensor.dtype),
            batch=batch,
            height=height,
            width=width,
            channels=channels,
            states=state,
            rank=self.rank,
            sequences=len(self.sequences),
            routes=len(self.sequences[0]),
            one_map=self.one_map,
            merge=self.merge,
            shared=self.one_map and sets == 1,
            softplus=self.softplus,
            blocks=max(min(blocks, ceil_div(channels, LANES)), 1),
            threads=threads,
            route_codes=ctypes.addressof(_codes(self.sequences)),
            x=self.x.fields,
            dt=self.dt.fields,
            B=self.B.fields,
            C=self.C.fields,
            padded=A.shape[2],
            W_dt=None if W_dt is None else W_dt.data_ptr(),
            b_dt=b_dt.data_ptr(),
            A=A.data_ptr(),
            Dskip=Dskip.data_ptr(),
        )
        return scan, (b_dt, Dskip, A, W_dt)


@functools.cache
def _codes(sequences: tuple[tuple[int, ...], ...]) -> ctypes.Array:
    """Return the routes of all sequences as the library reads them; kept, so their address stays good."""
    codes = [code for routes in sequences for code in routes]
    return (ctypes.c_int64 * len(codes))(*codes)


def _padded(weight: Tensor, axis: int) -> Tensor:
    """Pad one axis with zeros to whole registers, and make it contiguous."""
    missing = -weight.shape[axis] % LANES
    if missing:
        zeros = weight.new_zeros([missing if i == axis % weight.dim() else n for i, n in enumerate(weight.shape)])
        weight = torch.cat((weight, zeros), axis)
    return weight.contiguous()


def selective_scan(scan: Scan1d) -> tuple[Tensor, Tensor]:
    """Compute y and the states before every 64th token."""
    batch, channels, length = scan.u.shape
    y, states = new(scan.u, (batch, length, channels)), scan.A.new_empty(scan.states_shape)
    _Problem.of_1d(scan).forward(_of_groups(y, scan.B.shape[1]), states)
    return laid_out_as(scan.u, y.transpose(1, 2)), states


def selective_scan_backward(scan: Scan1d, dy: Tensor, states: Tensor) -> tuple[Tensor, ...]:
    """Compute the gradients of the seven tensors, in their order; empty where a weight was not given."""
    batch, channels, length = scan.u.shape
    groups, state = scan.B.shape[1:3]
    dy = last_axis_innermost(dy.to(scan.u.dtype).transpose(1, 2))
    du, ddelta = (new(scan.u, (batch, length, channels)) for _ in range(2))
    dy_, du_, ddelta_ = (_of_groups(tensor, groups) for tensor in (dy, du, ddelta))
    tokens, weights = _Problem.of_1d(scan).backward(dy_, states, du_, ddelta_)
    dB, dC = tokens[:, 0].permute(0, 2, 3, 1).split(state, 2)
    dA, dbias, dD = weights.transpose(1, 2).flatten(0, 1).split((state, 1, 1), 1)
    return (
        laid_out_as(scan.u, du.transpose(1, 2)),
        laid_out_as(scan.delta, ddelta.transpose(1, 2)),
        laid_out_as(scan.A, dA),
        laid_out_as(scan.B, dB),
        laid_out_as(scan.C, dC),
        scan.u.new_empty(0) if scan.D is None else laid_out_as(scan.D, dD[:, 0]),
        scan.u.new_empty(0) if scan.delta_bias is None else laid_out_as(scan.delta_bias, dbias[:, 0]),
    )


def scan2d(scan: Scan2d) -> tuple[Tensor, Tensor]:
    """Compute y and the states before every 64th token."""
    y = new(scan.x, scan.y_shape, scan.map_dtype(scan.merge))
    states = scan.A.new_empty(scan.states_shape)
    _Problem.of_2d(scan).forward(_of_map(y) if scan.merge else _of_routes(y), states)
    return y.to(scan.x.dtype), states


def scan2d_backward(scan: Scan2d, dy: Tensor, states: Tensor) -> tuple[Tensor, ...]:
    """Compute the gradients of the eight tensors, in their order."""
    dy, dx = last_axis_innermost(dy.to(scan.x.dtype)), new(scan.x, scan.x.shape, scan.map_dtype(True))
    placed = _of_map(dy) if scan.merge else _of_routes(dy)
    tokens, weights = _Problem.of_2d(scan).backward(placed, states, _of_map(dx), None)
    rank, state = scan.W_dt.shape[2], scan.A.shape[2]
    ddt, dB, dC = tokens.split((rank, state, state), 4)
    dW_dt, dA, db_dt, dDskip = weights.transpose(1, 2).split((rank, state, 1, 1), 2)
    gradients = (dx, ddt, dB, dC, dW_dt, db_dt[..., 0], dA, dDskip[..., 0])
    return tuple(laid_out_as(tensor, gradient) for tensor, gradient in zip(scan.tensors, gradients, strict=True))


BACKEND = Backend(
    why_not=why_not,
    selective_scan=selective_scan,
    selective_scan_backward=selective_scan_backward,
    scan2d=scan2d,
    scan2d_backward=scan2d_backward,
)
