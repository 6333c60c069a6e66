"""The scan by Triton kernels: puts them together, and launches them.

Routes are followed by index arithmetic; no copy of the map is made. The step of each channel is made outside of the
kernels, as a product of matrices in the dtype of the inputs, once for all routes that share it; what it keeps for the
backward pass is its low-rank form.

A program walks a whole sequence, from its first token to its last (backwards in the backward pass). Where that would
leave the GPU idle, each route is cut into spans, a program for each, and two kernels come before: one finds what each
span makes of a state of 0, one carries the states over the spans.

Every sum is taken in a fixed order. Where several routes or programs add to one number, each writes its part, in the
state's dtype, and torch adds the parts up: so all of them run at once without atomics, and only the sum is rounded to
the dtype of the inputs.
"""

import contextlib
from dataclasses import dataclass
from functools import cache, lru_cache
from math import prod
from typing import NamedTuple

import torch
from torch import Tensor

from mmmsv.compat.torch_versions import is_autocast_enabled

from ...arguments import CHUNK, Scan2d, ceil_div
from ...strides import last_axis_innermost
from .maps import vector

# Before 3.5, kernels cannot carry tuples through loops.
_OLDEST_TRITON = (3, 5)
_WARP = 32  # threads of a warp
# A multiprocessor with fewer warps waits for memory most of the time; where routes are cut for that, into more.
_WARPS_WANTED, _WARPS_OF_SPANS = 4, 16
# Fewer spans are not worth two more kernels and a second reading.
_MIN_SPANS = 3
# Spans that carry_over takes at once, and columns.
_CARRY_ROWS, _CARRY_COLUMNS = 256, 8


def why_no_triton() -> str | None:
    """Say in one clause why there is no Triton that can compile the kernels; None where there is."""
    try:
        import triton
    except ImportError:
        return "Triton is not installed"
    if tuple(int(part) for part in triton.__version__.split(".")[:2]) < _OLDEST_TRITON:
        return f"its kernels need Triton 3.5 (torch 2.9) or newer, this is {triton.__version__}"
    return None


@cache
def why_not(device: torch.device) -> str | None:
    """Say in one clause why the backend cannot run on a device; None where it can."""
    if reason := why_no_triton():
        return reason
    import triton

    from .scan_forward import scan_forward

    if not isinstance(scan_forward, triton.JITFunction):
        return None  # Triton's interpreter: TRITON_INTERPRET was set when the kernels were imported
    if device.type != "cuda":
        return "its kernels run on NVIDIA GPUs only"
    if torch.version.hip is not None:
        return "its kernels are made for NVIDIA GPUs, and torch is built for AMD's"
    if not torch.cuda.is_available():
        return "torch sees no NVIDIA GPU"
    if (capability := torch.cuda.get_device_capability(device)) < (7, 5):
        return f"its kernels need compute capability 7.5, the GPU has {capability[0]}.{capability[1]}"
    return None


def forward(scan: Scan2d) -> tuple[Tensor, Tensor]:
    """Compute y and the states before each chunk."""
    y = scan.new_routes(scan.map_dtype(scan.y_dtype, scan.merge))
    states = _Problem.of(scan).forward(y.flatten(2, 3))
    return _sum_maps(y, scan.y_dtype) if scan.merge else y, states


def backward(scan: Scan2d, dy: Tensor, states: Tensor) -> tuple[Tensor | None, ...]:
    """Compute the gradients of the tensors, in their order."""
    dy = _for_routes(scan, dy.unsqueeze(3)) if scan.merge else last_axis_innermost(dy.flatten(2, 3))
    dx, ddelta, dBC, dweights = _Problem.of(scan).backward(scan.kept_states(states), dy)
    dx = _sum_maps(dx, scan.x.dtype) if scan.x.dim() == 4 else dx.permute(0, 2, 3, 1, 4)
    # Parts are summed over batch and programs, and over routes where one set of weights takes all.
    shared, state = scan.A.shape[0] == 1, scan.A.shape[2]
    dBC = dBC.sum((1, 2) if shared else 1, keepdim=True)[:, 0].transpose(1, 2).unflatten(1, scan.x.shape[1:3])
    dB, dC = dBC.split(state, -1)
    dA = _sum_parts(dweights[:, :, 2:], shared).permute(1, 2, 0)
    db_dt, dDskip = (_sum_parts(dweights[:, :, row], shared) for row in range(2))
    ddt, dW_dt = ddelta.permute(0, 2, 3, 1, 4), None
    if scan.W_dt is not None:
        ddt, dW_dt = _low_rank_gradients(scan, scan.W_dt, ddelta)
    return dx, ddt, dB, dC, dW_dt, db_dt, dA, dDskip


class _Gradients(NamedTuple):
    """Gradients, some of them in parts."""

    u: Tensor  # (batch, routes or 1, H, W, D)
    delta: Tensor  # (batch, routes or 1, H, W, D)
    BC: Tensor  # (batch, blocks of channels, routes, tokens, 2 N)
    weights: Tensor  # of bias, skip and A, (batch, spans, 2 + N, sequences, D)


def _as_given(scan: Scan2d) -> contextlib.AbstractContextManager:
    """Compute products in the dtype of their factors, whatever autocast would make of them."""
    kind = scan.x.device.type
    return torch.autocast(kind, enabled=False) if is_autocast_enabled(kind) else contextlib.nullcontext()


def _dense_step(scan: Scan2d) -> Tensor:
    """Make the step of each channel before its bias, ``(batch, H, W, S, D)``."""
    if scan.W_dt is None:
        return scan.dt
    by_set = scan.dt.permute(3, 0, 1, 2, 4)
    with _as_given(scan):
        step = torch.bmm(by_set.flatten(1, 3), scan.W_dt.to(scan.dt.dtype).mT)
    return step.unflatten(1, by_set.shape[1:4]).permute(1, 2, 3, 0, 4)


def _low_rank_gradients(scan: Scan2d, W_dt: Tensor, ddelta: Tensor) -> tuple[Tensor, Tensor]:
    """Return the gradients of dt and of W_dt from that of the step, ``(batch, routes or 1, H, W, D)``."""
    sets, channels, rank = W_dt.shape
    batch, routes, height, width, _ = ddelta.shape
    by_route, dt = ddelta.flatten(2, 3), _for_routes(scan, scan.dt)[:, :routes]  # (batch, routes or 1, tokens, D or R)
    with _as_given(scan):
        # Weights as the step was made of.
        weight = W_dt.to(scan.dt.dtype).to(ddelta.dtype).expand(batch, sets, channels, rank).flatten(0, 1)
        # Sums over routes are rounded, not what is summed.
        product = _wide_product if routes > sets else torch.bmm
        ddt = product(by_route.flatten(*(1, 2) if sets == 1 else (0, 1)), weight)
        dW_dt = _wide_product(by_route.flatten(0, 1).mT, dt.flatten(0, 1).to(ddelta.dtype))
    ddt = ddt.view(batch, routes, height, width, rank).sum_to_size(batch, sets, height, width, rank)
    dW_dt = dW_dt.view(batch, routes, channels, rank).sum(0).sum_to_size(W_dt.shape)
    return ddt.permute(0, 2, 3, 1, 4), dW_dt


def _wide_product(left: Tensor, right: Tensor) -> Tensor:
    """Multiply matrices; return float32 where they are narrower, since results are summed afterwards."""
    if left.dtype in (torch.float32, torch.float64):
        return torch.bmm(left, right)
    if left.device.type == "cuda":  # there is no out_dtype elsewhere; there is with each torch that has Triton 3.5
        return torch.bmm(left, right, out_dtype=torch.float32)
    return torch.bmm(left.float(), right.float())


@dataclass(frozen=True)
class _Problem:
    """The scan as the kernels see it: D channels for each sequence, S sets of weights, one or one a sequence."""

    scan: Scan2d
    u: Tensor  # (batch, routes, tokens, D)
    delta: Tensor  # (batch, routes, tokens, D)
    B: Tensor  # (batch, routes, tokens, N)
    C: Tensor  # (batch, routes, tokens, N), strides of B
    bias: Tensor | None  # (S, D)
    A: Tensor  # (N, S, D)
    skip: Tensor | None  # (S, D)

    @classmethod
    def of(cls, scan: Scan2d) -> "_Problem":
        u, delta, B, C = (_for_routes(scan, tensor) for tensor in (scan.maps, _dense_step(scan), scan.B, scan.C))
        if B.stride() != C.stride():
            B, C = B.contiguous(), C.contiguous()
        bias, skip = (None if weight is None else weight.contiguous() for weight in (scan.b_dt, scan.Dskip))
        return cls(scan, u, delta, B, C, bias, scan.A.movedim(-1, 0).contiguous(), skip)

    def forward(self, y: Tensor) -> Tensor:
        """Write y ``(batch, routes, tokens, D)`` and return the states."""
        from .scan_forward import scan_forward

        states = self.A.new_empty(prod(self.scan.states_shape)) if self.scan.chunk else None
        if self.u.numel():
            with torch.cuda.device_of(self.u):
                launch = self._launch(_forward_tile(self.A.shape[0], self.A.dtype), y)
                carry = self._carried(launch, self.u, self.B, backward=False)
                scan_forward[launch.grid](
                    *(self.u, self.delta, self.B, self.C, self.bias, self.A, self.skip, y, states, carry),
                    *_strides(self.u, self.delta, self.B, y),
                    *launch.sizes,
                    **launch.constants,
                    SPLIT=launch.spans > 0,
                    CHUNK=self.chunk,
                    maxnreg=255 if self.A.shape[0] > 1 else None,  # as below
                )
        return self.A.new_empty(0) if states is None else states

    def backward(self, states: Tensor, dy: Tensor) -> _Gradients:
        """Compute the gradients from that of y, ``(batch, routes, tokens, D)``, and the states."""
        from .scan_backward import scan_backward

        batch, routes, tokens, channels = self.u.shape
        scan, state, sequences = self.scan, self.A.shape[0], self._sequences
        launch = self._launch(_backward_tile(state, scan.x.dtype), dy)
        # The routes that one program walks are summed there, in maps of the state's dtype.
        summed = scan.x.dim() == 4 and scan.carry and routes > 1 and not launch.spans
        if summed:
            du, ddelta = (scan.new_merged(scan.x.dtype).unsqueeze(1) for _ in range(2))
            sums = [each.new_empty(each.shape, dtype=self.A.dtype) for each in (du, ddelta)]
        else:
            # Of routes that share a map or a step, sums are rounded, not what is summed.
            du = scan.new_routes(scan.map_dtype(scan.x.dtype, scan.x.dim() == 4))
            ddelta = scan.new_routes(scan.map_dtype(scan.x.dtype, scan.W_dt is not None and scan.A.shape[0] == 1))
            sums = [du, ddelta]  # which the kernel does not touch
        gradients = _Gradients(
            *(du, ddelta),
            BC=self.A.new_empty(batch, launch.blocks, routes, tokens, 2 * state),
            weights=self.A.new_empty(batch, launch.rows, 2 + state, sequences, channels),
        )
        if not self.u.numel():
            return _Gradients(*(gradient.zero_() for gradient in gradients))
        tiles = self.chunk // launch.constants["TILE"]
        starts = self.A.new_empty(batch * launch.rows * (tiles + 1 if tiles > 1 else 0), state, sequences * channels)
        views = [gradient.expand(-1, routes, -1, -1, -1).flatten(2, 3) for gradient in (du, ddelta)]
        with torch.cuda.device_of(self.u):
            scan_backward[launch.grid](
                *(self.u, self.delta, self.B, self.C, self.bias, self.A, self.skip, dy, du, ddelta),
                *(*sums, *gradients[2:], states.contiguous(), self._carried(launch, dy, self.C, backward=True), starts),
                *_strides(self.u, self.delta, self.B, dy, *views),
                *launch.sizes,
                **launch.constants,
                SPLIT=launch.spans > 0,
                SUMMED=summed,
                CHUNK=self.chunk,
                maxnreg=255,  # else the assembler spills some, where that fits one more program on a multiprocessor
            )
        return gradients

    def _carried(self, launch: "_Launch", signal: Tensor, projection: Tensor, backward: bool) -> Tensor:
        """Return the state that enters each span, ``(batch, spans, N, sequences * D)``; without spans, any numbers."""
        from .spans import carry_over, summarise

        batch, channels, state, sequences = self.u.shape[0], self.u.shape[3], self.A.shape[0], self._sequences
        rows, size = launch.rows, sequences * channels
        carry = self.A.new_empty(batch, rows, state, size)
        if launch.spans:
            ends, totals = torch.empty_like(carry), self.A.new_empty(batch, rows, size)
            summarise[launch.grid](
                *(signal, self.delta, projection, self.bias, self.A, ends, totals),
                *_strides(signal, self.delta, projection),
                *launch.sizes,
                **launch.constants,
                BACKWARD=backward,
            )
            programs = batch * state * ceil_div(size, _CARRY_COLUMNS)
            carry_over[programs,](
                *(self.A, totals, ends, carry, rows, size, self.A[0].numel()),
                N=state,
                ROWS=min(_CARRY_ROWS, 1 << (rows - 1).bit_length()),
                BLOCK_D=_CARRY_COLUMNS,
                BACKWARD=backward,
                num_warps=8,
            )
        return carry

    @property
    def chunk(self) -> int:
        """Tokens of a chunk, whether or not the states before them are kept."""
        return self.scan.chunk or CHUNK

    @property
    def _sequences(self) -> int:
        return len(self.scan.sequences)

    def _launch(self, tile: "_Tile", *others: Tensor) -> "_Launch":
        """Choose how to launch a kernel that reads the inputs, and reads or writes others like u."""
        batch, routes, tokens, channels = self.u.shape
        like_u = (self.u, self.delta, *others)
        most = vector(*like_u)
        per_sequence, wanted = routes // self._sequences, _warps_wanted(self.u.device)
        count, blocks = _choose_vector(tile, most, channels, wanted / max(batch * self._sequences, 1))
        block, programs = _WARP * count, batch * self._sequences * blocks
        spans, span = _cut(tokens, per_sequence, programs, self.chunk, wanted)
        offsets = max(routes * tokens * 2 * self.A.shape[0], *map(_extent, (*like_u, self.B, self.C)))
        column_major, reversed_ = _masks(tuple(self.scan.route_codes))
        rows = per_sequence * spans if spans else 1
        return _Launch(
            grid=(programs * rows,),
            blocks=blocks,
            spans=spans,
            rows=rows,
            sizes=(
                *_divisor(self.scan.x.shape[1]),
                self.scan.x.shape[2],
                self._sequences,
                channels,
                self.A.shape[1],
                spans,
                span,
            ),
            constants={
                "N": self.A.shape[0],
                "ROUTES": per_sequence,
                "COLUMN_MAJOR": column_major,
                "REVERSED": reversed_,
                "SOFTPLUS": self.scan.softplus,
                "WIDE": offsets > torch.iinfo(torch.int32).max,
                "VECTOR": count,
                "FULL": channels % block == 0,
                "TILE": tile.tokens,
                "BLOCK_D": block,
                "num_warps": 1,
            },
        )


class _Tile(NamedTuple):
    """What a thread holds in registers.

    Args:
        vectors: Numbers of neighbouring channels, to choose from: more share the work that is done once for each token.
        tokens: Those that are written out one after the other, and whose inputs are read together.
    """

    vectors: tuple[int, ...]
    tokens: int


def _forward_tile(state: int, dtype: torch.dtype) -> _Tile:
    """Return the largest that fits in the registers, for states of so many numbers of a dtype."""
    if dtype == torch.float64:
        return _Tile((1,), 4)
    return _Tile((4, 2, 1) if state == 1 else (2, 1), 8)


def _backward_tile(state: int, dtype: torch.dtype) -> "_Tile":
    """Return the largest that fits in the registers, for states of so many numbers and maps of a dtype."""
    if dtype == torch.float64:
        return _Tile((1,), 4)
    return _Tile((1,) if dtype == torch.float32 else (2, 1), 8 if state == 1 else 4)


class _Launch(NamedTuple):
    """How a kernel is launched: its grid, and the arguments that all kernels share."""

    grid: tuple[int]
    blocks: int  # of channels
    spans: int  # of a route; 0: a program walks a whole sequence
    rows: int  # spans of a sequence
    sizes: tuple[int, ...]
    constants: dict[str, int]


def _for_routes(scan: Scan2d, tensor: Tensor) -> Tensor:
    """View what each token has for each set, ``(batch, H, W, S, *)``, as ``(batch, routes, tokens, *)``."""
    tensor = last_axis_innermost(tensor.flatten(1, 2)).transpose(1, 2)
    return tensor.expand(-1, len(scan.route_codes), -1, -1)


def _sum_parts(parts: Tensor, shared: bool) -> Tensor:
    """Sum parts of a weight's gradient, ``(batch, spans, *, sequences, D)``; over sequences too if they share it."""
    summed = parts.sum((0, 1))
    return summed.sum(-2, keepdim=True) if shared and summed.shape[-2] > 1 else summed


def _sum_maps(maps: Tensor, dtype: torch.dtype) -> Tensor:
    return (maps[:, 0] if maps.shape[1] == 1 else maps.sum(1)).to(dtype)


def _strides(*tensors: Tensor) -> tuple[int, ...]:
    return tuple(stride for tensor in tensors for stride in tensor.stride()[:3])


def _extent(tensor: Tensor) -> int:
    """Return the largest offset of an element of one batch index."""
    return sum((size - 1) * stride for size, stride in zip(tensor.shape[1:], tensor.stride()[1:], strict=True))


def _choose_vector(tile: _Tile, most: int, channels: int, programs: float) -> tuple[int, int]:
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
def _warps_wanted(device: torch.device) -> int:
    """Return how many warps keep a device busy."""
    multiprocessors = torch.cuda.get_device_properties(device).multi_processor_count if device.type == "cuda" else 1
    return multiprocessors * _WARPS_WANTED
