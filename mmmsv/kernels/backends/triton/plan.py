"""How a scan is cut into programs: worked out from sizes, strides and dtypes alone."""

from dataclasses import dataclass
from functools import cache, lru_cache
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor

from ...arguments import Scan2d, ceil_div
from .maps import vector

if TYPE_CHECKING:  # which imports Triton
    from .launch import Launch

_WARP = 32  # threads of a warp
# A multiprocessor with fewer warps waits for memory most of the time; where routes are cut for that, into more.
_WARPS_WANTED, _WARPS_OF_SPANS = 4, 16
# Fewer spans are not worth two more kernels and a second reading.
_MIN_SPANS = 3


class Tile(NamedTuple):
    """What a thread holds in registers.

    Args:
        vectors: Numbers of neighbouring channels, to choose from: more share the work that is done once for each token.
        tokens: Those that are written out one after the other, and whose inputs are read together.
    """

    vectors: tuple[int, ...]
    tokens: int


def forward_tile(state: int, dtype: torch.dtype) -> Tile:
    """Return the largest that fits in the registers, for states of so many numbers of a dtype."""
    if dtype == torch.float64:
        return Tile((1,), 4)
    return Tile((4, 2, 1) if state == 1 else (2, 1), 8)


def backward_tile(state: int, dtype: torch.dtype) -> Tile:
    """Return the largest that fits in the registers, for states of so many numbers and maps of a dtype."""
    if dtype == torch.float64:
        return Tile((1,), 4)
    return Tile((1,) if dtype == torch.float32 else (2, 1), 8 if state == 1 else 4)


@dataclass(frozen=True, eq=False)
class Plan:
    """How the kernels of a scan are launched, and the arguments that they share."""

    programs: int
    blocks: int  # of channels
    spans: int  # of a route; 0: a program walks a whole sequence, and begins with 0
    rows: int  # spans of a sequence
    sizes: tuple[int, ...]
    constants: dict[str, Any]

    def launch(self, maps: tuple[Tensor | None, ...], **constants: Any) -> "Launch":
        """Return how a kernel is launched that takes the strides of some maps, and more constants."""
        from .launch import Launch

        return Launch(self.programs, (*_strides(*maps), *self.sizes), {**self.constants, **constants})


def plan_scan(scan: Scan2d, tile: Tile, chunk: int, begun: bool, u: Tensor, *others: Tensor | None) -> Plan:
    """Plan the launch of a kernel.

    Args:
        scan: What is scanned.
        tile: What a thread holds.
        chunk: Tokens of a chunk.
        begun: Whether sequences begin with a state that is given.
        u: ``(batch, routes, tokens, D)``.
        *others: What the kernel also reads or writes: delta, z, B, C, A, and another tensor like u.
    """
    from .launch import once

    codes, sequences = tuple(scan.route_codes), len(scan.sequences)
    options = tile, scan.x.shape[1:3], codes, sequences, chunk, begun, scan.softplus, warps_wanted(u.device)
    return once(_make_plan, (u, *others), *options)


def _make_plan(
    u: Tensor,
    delta: Tensor,
    z: Tensor | None,
    B: Tensor,
    C: Tensor,
    A: Tensor,
    other: Tensor,
    tile: Tile,
    size: tuple[int, int],
    codes: tuple[int, ...],
    sequences: int,
    chunk: int,
    begun: bool,
    softplus: bool,
    wanted: int,
) -> Plan:
    batch, routes, tokens, channels = u.shape
    like_u = (u, delta, other) if z is None else (u, delta, z, other)
    per_sequence = routes // sequences
    count, blocks = _choose_vector(tile, vector(*like_u), channels, wanted / max(batch * sequences, 1))
    block, programs = _WARP * count, batch * sequences * blocks
    spans, span = _cut(tokens, per_sequence, programs, chunk, wanted)
    if begun and not spans:
        spans = 1  # which programs begin with a state
    offsets = max(routes * tokens * 2 * A.shape[0], *map(_extent, (*like_u, B, C)))
    column_major, reversed_ = _masks(codes)
    rows = per_sequence * spans if spans else 1
    return Plan(
        programs=programs * rows,
        blocks=blocks,
        spans=spans,
        rows=rows,
        sizes=(*_divisor(size[0]), size[1], sequences, channels, A.shape[1], spans, span),
        constants={
            "N": A.shape[0],
            "ROUTES": per_sequence,
            "COLUMN_MAJOR": column_major,
            "REVERSED": reversed_,
            "SOFTPLUS": softplus,
            "WIDE": offsets > torch.iinfo(torch.int32).max,
            "VECTOR": count,
            "FULL": channels % block == 0,
            "TILE": tile.tokens,
            "BLOCK_D": block,
            "num_warps": 1,
        },
    )


def _strides(*tensors: Tensor | None) -> tuple[int | None, ...]:
    """Return the strides of each :class:`.tokens.Map`; None, for which there is no code, where there is no tensor."""
    return tuple(stride for tensor in tensors for stride in ((None,) * 3 if tensor is None else tensor.stride()[:3]))


def _extent(tensor: Tensor) -> int:
    """Return the largest offset of an element of one batch index."""
    return sum((size - 1) * stride for size, stride in zip(tensor.shape[1:], tensor.stride()[1:], strict=True))


def _choose_vector(tile: Tile, most: int, channels: int, programs: float) -> tuple[int, int]:
    """Return how many channels a thread has, and the blocks of them that the programs have."""
    fitting = [count for count in tile.vectors if count <= most]
    idle = [-channels % (_WARP * count) for count in fitting]
    # As many as can be with no more of them idle than with one, and with programs for all multiprocessors.
    counts = [count for count, each in zip(fitting, idle, strict=True) if each == min(idle)]
    blocks = [ceil_div(channels, _WARP * count) for count in counts]
    return next((pair for pair in zip(counts, blocks, strict=True) if pair[1] >= programs), (counts[0], blocks[0]))


def _cut(tokens: int, routes: int, programs: int, chunk: int, warps: int) -> tuple[int, int]:
    """Return how many spans a route is cut into, 0 for none, and the tokens of each: whole chunks."""
    chunks = ceil_div(tokens, chunk)
    most = ceil_div(warps * _WARPS_OF_SPANS // _WARPS_WANTED, max(programs * routes, 1))
    spans = min(chunks, most) if 0 < programs < warps else 0
    if spans * routes < _MIN_SPANS:
        return 0, tokens
    span = ceil_div(chunks, spans) * chunk
    return ceil_div(tokens, span), span


@lru_cache
def _divisor(number: int) -> tuple[int, int, int]:
    from .tokens import divisor

    return divisor(number)


@lru_cache
def _masks(codes: tuple[int, ...]) -> tuple[int, int]:
    """Return which routes are column-major, and which are reversed, as the kernels take it."""

    def mask(bits: list[bool]) -> int:
        return -all(bits) if len(set(bits)) == 1 else sum(1 << i for i, bit in enumerate(bits) if bit)

    return mask([code % 2 == 1 for code in codes]), mask([code >= 2 for code in codes])


@cache
def warps_wanted(device: torch.device) -> int:
    """Return how many warps keep a device busy; where kernels are only compiled or interpreted, an H100."""
    multiprocessors = torch.cuda.get_device_properties(device).multi_processor_count if device.type == "cuda" else 132
    return multiprocessors * _WARPS_WANTED
