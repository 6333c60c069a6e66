"""How a scan is described to the library: the struct that its functions take, and how tensors are put there."""

import ctypes
import functools
from typing import NamedTuple

import torch
from torch import Tensor

from ...arguments import CHUNK, ceil_div
from ...strides import last_axis_innermost
from .library import DTYPES, GROUPS, LANES
from .memory import in_huge_pages


class _PerToken(ctypes.Structure):
    """``PerToken`` of scan.h."""

    _fields_ = [
        ("data", ctypes.c_void_p),
        *((name, ctypes.c_int64) for name in ("batch", "sequence", "route", "row", "column", "channel")),
    ]


class ScanProblem(ctypes.Structure):
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


class Placed(NamedTuple):
    """A tensor that holds something for each token, and its strides: ``PerToken`` of scan.h."""

    tensor: Tensor
    batch: int
    sequence: int
    route: int
    row: int
    column: int
    channel: int = 1

    @classmethod
    def of_sequences(cls, tensor: Tensor) -> "Placed":
        """Place ``(batch, H, W, S, *)``: S is 1, and all sequences share it, or there is one for each sequence."""
        tensor = last_axis_innermost(tensor)
        batch, row, column, sequence, _ = tensor.stride()
        return cls(tensor, batch, sequence if tensor.shape[3] > 1 else 0, 0, row, column)

    @classmethod
    def of_routes(cls, tensor: Tensor) -> "Placed":
        """Place ``(batch, routes, H, W, D)``, or ``(batch, H, W, D)``, which all routes share."""
        tensor = last_axis_innermost(tensor)
        if tensor.dim() == 4:
            batch, row, column, _ = tensor.stride()
            return cls(tensor, batch, 0, 0, row, column)
        batch, route, row, column, _ = tensor.stride()
        return cls(tensor, batch, 0, route, row, column)

    @classmethod
    def of_groups(cls, tensor: Tensor) -> "Placed":
        """Place ``(batch, L, G, D)``, a row of a map for each group: as it lies, unless channels share their memory."""
        channel = 1 if tensor.shape[3] == 1 else tensor.stride(3)
        if channel == 0:
            tensor, channel = tensor.contiguous(), 1
        batch, token, group, _ = tensor.stride()
        return cls(tensor, batch, group, 0, 0, token, channel)

    @property
    def fields(self) -> tuple[int, ...]:
        """What ``PerToken`` holds."""
        return (self.tensor.data_ptr(), *self[1:])


class Described(NamedTuple):
    """A description, and the tensors that have to live as long as it."""

    problem: ScanProblem
    tensors: list[object]

    def place(self, **placed: Placed) -> None:
        """Describe tensors that hold something for each token."""
        for name, each in placed.items():
            setattr(self.problem, name, each.fields)
            self.tensors.append(each)

    def new_parts(self, A: Tensor) -> tuple[Tensor, Tensor]:
        """Make and describe the parts of a backward pass, sums of which are gradients.

        Args:
            A: ``(S, D, N)``, in the dtype of the parts.

        Returns:
            Those of dt, B and C, ``(blocks, batch, H, W, S, R + 2 N)``, and those of W_dt, A, bias and skip, of each
            group of images, ``(groups, S, D, R + N + 2)``, where R may be 0.
        """
        problem, (sets, channels, state) = self.problem, A.shape
        size = problem.batch, problem.height, problem.width, sets, problem.rank + 2 * state
        of_tokens = in_huge_pages(A.new_empty(problem.blocks, *size))
        problem.groups = min(problem.batch, GROUPS)
        of_weights = A.new_zeros(problem.groups, sets, problem.rank + state + 2, problem.padded)
        problem.token_parts, problem.weight_parts = of_tokens.data_ptr(), of_weights.data_ptr()
        return of_tokens, of_weights[..., :channels].transpose(2, 3)


def describe(
    x: Tensor,
    A: Tensor,
    bias: Tensor | None,
    skip: Tensor | None,
    size: tuple[int, int],
    sequences: tuple[tuple[int, ...], ...],
    blocks: int,
) -> Described:
    """Describe the sizes and the weights of a scan.

    Args:
        x: ``(batch, ..., D)``.
        A: ``(S, D, N)``, as the other weights in the dtype of the state.
        bias: ``(S, D)``.
        skip: ``(S, D)``.
        size: Rows and columns of the map.
        sequences: The routes of each sequence, by their place in ``ROUTES``.
        blocks: Number of blocks that the channels are cut into, at most.
    """
    sets, channels, state = A.shape
    zeros = A.new_zeros(sets, channels)
    weights = [padded(A.transpose(1, 2), 2), *(padded(zeros if one is None else one, 1) for one in (bias, skip))]
    problem = ScanProblem(
        dtype=DTYPES.index(x.dtype),
        batch=x.shape[0],
        height=size[0],
        width=size[1],
        channels=channels,
        states=state,
        sequences=len(sequences),
        routes=len(sequences[0]),
        shared=sets == 1,
        blocks=max(min(blocks, ceil_div(channels, LANES)), 1),
        threads=torch.get_num_threads(),
        route_codes=ctypes.addressof(_codes(sequences)),
        padded=weights[0].shape[2],
    )
    problem.A, problem.b_dt, problem.Dskip = (weight.data_ptr() for weight in weights)
    return Described(problem, [*weights])


@functools.cache
def _codes(sequences: tuple[tuple[int, ...], ...]) -> ctypes.Array:
    """Return the routes as the library reads them; kept, so that their address stays good."""
    codes = [code for routes in sequences for code in routes]
    return (ctypes.c_int64 * len(codes))(*codes)


def check_chunk(chunk: int) -> None:
    """Raise RuntimeError where a program was recorded with the chunks of another device."""
    if chunk not in (0, CHUNK):
        raise RuntimeError("scan: this program was recorded for a GPU; record it again for a CPU")


def padded(weight: Tensor, axis: int) -> Tensor:
    """Pad one axis with zeros to whole registers, and make it contiguous."""
    missing = -weight.shape[axis] % LANES
    if missing:
        zeros = weight.new_zeros([missing if i == axis % weight.dim() else n for i, n in enumerate(weight.shape)])
        weight = torch.cat((weight, zeros), axis)
    return weight.contiguous()
