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
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor

from mmmsv.compat.torch_versions import is_autocast_enabled

from ...arguments import CHUNK, Scan2d, ceil_div
from ...strides import last_axis_innermost
from .maps import vector

if TYPE_CHECKING:  # which imports Triton
    from .launch import Launch

# Before 3.5, kernels cannot carry tuples through loops.
_OLDEST_TRITON = (3, 5)
_WARP = 32  # threads of a warp
# A multiprocessor with fewer warps waits for memory most of the time; where routes are cut for that, into more.
_WARPS_WANTED, _WARPS_OF_SPANS = 4, 16
# Fewer spans are not worth two more kernels and a second reading.
_MIN_SPANS = 3
# Products of matrices that keep a GPU busy, and tokens that each sums over at least.
_PRODUCTS_WANTED, _TOKENS_OF_A_SUM = 256, 256
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
    dweights = dweights.sum((0, 1))
    if shared and dweights.shape[1] > 1:
        dweights = dweights.sum(1, keepdim=True)
    db_dt, dDskip, dA = dweights[0], dweights[1], dweights[2:].permute(1, 2, 0)
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
    weight = scan.W_dt.to(scan.dt.dtype)
    with _as_given(scan):
        if len(weight) == 1:
            return torch.mm(scan.dt.flatten(0, 3), weight[0].t()).view(*scan.dt.shape[:4], weight.shape[1])
        by_set = scan.dt.permute(3, 0, 1, 2, 4)
        step = torch.bmm(by_set.flatten(1, 3), weight.mT)
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
        parts = _parts(batch * routes, height * width)
        size = batch * routes * parts, height * width // parts
        left, right = (each.reshape(*size, each.shape[-1]) for each in (by_route, dt))
        dW_dt = _wide_product(left.mT, right.to(ddelta.dtype))
    ddt = ddt.view(batch, routes, height, width, rank).sum_to_size(batch, sets, height, width, rank)
    dW_dt = dW_dt.view(batch, routes, parts, channels, rank).sum((0, 2)).sum_to_size(W_dt.shape)
    return ddt.permute(0, 2, 3, 1, 4), dW_dt


def _parts(products: int, tokens: int) -> int:
    """Return into how many parts of one length long sums over tokens are cut, so that few products keep a GPU busy."""
    wanted = max(min(ceil_div(_PRODUCTS_WANTED, max(products, 1)), tokens // _TOKENS_OF_A_SUM), 1)
    return next(parts for parts in range(wanted, 0, -1) if tokens % parts == 0)


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
        from .launch import launch
        from .scan_forward import scan_forward

        states = self.A.new_empty(prod(self.scan.states_shape)) if self.scan.chunk else None
        if self.u.numel():
            plan = self._plan(_forward_tile(self.A.shape[0], self.A.dtype), y)
            carry = self._carried(plan, self.u, self.B, backward=False)
            tensors = (self.u, self.delta, self.B, self.C, self.bias, self.A, self.skip, y, states, carry)
            launch(scan_forward, tensors, _prepare_forward, plan, self.chunk)
        return self.A.new_empty(0) if states is None else states

    def backward(self, states: Tensor, dy: Tensor) -> _Gradients:
        """Compute the gradients from that of y, ``(batch, routes, tokens, D)``, and the states."""
        from .launch import launch
        from .scan_backward import scan_backward

        batch, routes, tokens, channels = self.u.shape
        scan, state, sequences = self.scan, self.A.shape[0], self._sequences
        plan = self._plan(_backward_tile(state, scan.x.dtype), dy)
        # The routes that one program walks are summed there, in maps of the state's dtype.
        summed = scan.x.dim() == 4 and scan.carry and routes > 1 and not plan.spans
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
            BC=self.A.new_empty(batch, plan.blocks, routes, tokens, 2 * state),
            weights=self.A.new_empty(batch, plan.rows, 2 + state, sequences, channels),
        )
        if not self.u.numel():
            return _Gradients(*(gradient.zero_() for gradient in gradients))
        tiles = self.chunk // plan.constants["TILE"]
        starts = self.A.new_empty(batch * plan.rows * (tiles + 1 if tiles > 1 else 0), state, sequences * channels)
        carry = self._carried(plan, dy, self.C, backward=True)
        inputs = (self.u, self.delta, self.B, self.C, self.bias, self.A, self.skip, dy)
        tensors = (*inputs, du, ddelta, *sums, *gradients[2:], states.contiguous(), carry, starts)
        launch(scan_backward, tensors, _prepare_backward, plan, self.chunk, summed)
        return gradients

    def _carried(self, plan: "_Plan", signal: Tensor, projection: Tensor, backward: bool) -> Tensor:
        """Return the state that enters each span, ``(batch, spans, N, sequences * D)``; without spans, any numbers."""
        batch, channels, state, sequences = self.u.shape[0], self.u.shape[3], self.A.shape[0], self._sequences
        carry = self.A.new_empty(batch, plan.rows, state, sequences * channels)
        if plan.spans:
            from .launch import launch
            from .spans import carry_over, summarise

            ends, totals = torch.empty_like(carry), self.A.new_empty(batch, plan.rows, sequences * channels)
            tensors = (signal, self.delta, projection, self.bias, self.A, ends, totals)
            launch(summarise, tensors, _prepare_summary, plan, backward)
            launch(carry_over, (self.A, totals, ends, carry), _prepare_carry, backward)
        return carry

    @property
    def chunk(self) -> int:
        """Tokens of a chunk, whether or not the states before them are kept."""
        return self.scan.chunk or CHUNK

    @property
    def _sequences(self) -> int:
        return len(self.scan.sequences)

    def _plan(self, tile: "_Tile", other: Tensor) -> "_Plan":
        """Plan the launch of a kernel that reads the inputs, and reads or writes another tensor like u."""
        from .launch import once

        scan, tensors = self.scan, (self.u, self.delta, self.B, self.C, self.A, other)
        wanted = _warps_wanted(self.u.device)
        options = tile, scan.x.shape[1:3], tuple(scan.route_codes), self._sequences, self.chunk, scan.softplus, wanted
        return once(_make_plan, tensors, *options)


def _make_plan(
    u: Tensor,
    delta: Tensor,
    B: Tensor,
    C: Tensor,
    A: Tensor,
    other: Tensor,
    tile: "_Tile",
    size: tuple[int, int],
    codes: tuple[int, ...],
    sequences: int,
    chunk: int,
    softplus: bool,
    wanted: int,
) -> "_Plan":
    batch, routes, tokens, channels = u.shape
    like_u = (u, delta, other)
    per_sequence = routes // sequences
    count, blocks = _choose_vector(tile, vector(*like_u), channels, wanted / max(batch * sequences, 1))
    block, programs = _WARP * count, batch * sequences * blocks
    spans, span = _cut(tokens, per_sequence, programs, chunk, wanted)
    offsets = max(routes * tokens * 2 * A.shape[0], *map(_extent, (*like_u, B, C)))
    column_major, reversed_ = _masks(codes)
    rows = per_sequence * spans if spans else 1
    return _Plan(
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


def _prepare_forward(
    u: Tensor,
    delta: Tensor,
    B: Tensor,
    C: Tensor,
    bias: Tensor | None,
    A: Tensor,
    skip: Tensor | None,
    y: Tensor,
    states: Tensor | None,
    carry: Tensor,
    plan: "_Plan",
    chunk: int,
) -> "Launch":
    # maxnreg as in the backward pass.
    maxnreg = 255 if A.shape[0] > 1 else None
    return plan.launch((u, delta, B, y), SPLIT=plan.spans > 0, CHUNK=chunk, maxnreg=maxnreg)


def _prepare_backward(*given: Any) -> "Launch":
    u, delta, B, _, _, _, _, dy, du, ddelta, *_, plan, chunk, summed = given
    views = [gradient.expand(-1, u.shape[1], -1, -1, -1).flatten(2, 3) for gradient in (du, ddelta)]
    # maxnreg: else the assembler spills some, where that fits one more program on a multiprocessor.
    maps = (u, delta, B, dy, *views)
    return plan.launch(maps, SPLIT=plan.spans > 0, SUMMED=summed, CHUNK=chunk, maxnreg=255)


def _prepare_summary(
    signal: Tensor,
    delta: Tensor,
    projection: Tensor,
    bias: Tensor | None,
    A: Tensor,
    ends: Tensor,
    totals: Tensor,
    plan: "_Plan",
    backward: bool,
) -> "Launch":
    return plan.launch((signal, delta, projection), BACKWARD=backward)


def _prepare_carry(A: Tensor, totals: Tensor, ends: Tensor, carry: Tensor, backward: bool) -> "Launch":
    from .launch import Launch

    batch, rows, state, size = carry.shape
    constants = {
        "N": state,
        "ROWS": min(_CARRY_ROWS, 1 << (rows - 1).bit_length()),
        "BLOCK_D": _CARRY_COLUMNS,
        "BACKWARD": backward,
        "num_warps": 8,
    }
    return Launch(batch * state * ceil_div(size, _CARRY_COLUMNS), (rows, size, A[0].numel()), constants)


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


@dataclass(frozen=True, eq=False)
class _Plan:
    """How the kernels of a scan are launched, and the arguments that they share."""

    programs: int
    blocks: int  # of channels
    spans: int  # of a route; 0: a program walks a whole sequence
    rows: int  # spans of a sequence
    sizes: tuple[int, ...]
    constants: dict[str, Any]

    def launch(self, maps: tuple[Tensor, ...], **constants: Any) -> "Launch":
        """Return how a kernel is launched that takes the strides of some maps, and more constants."""
        from .launch import Launch

        return Launch(self.programs, (*_strides(*maps), *self.sizes), {**self.constants, **constants})


def _for_routes(scan: Scan2d, tensor: Tensor) -> Tensor:
    """View what each token has for each set, ``(batch, H, W, S, *)``, as ``(batch, routes, tokens, *)``."""
    batch, height, width, sets, columns = tensor.shape
    image, row, token, route, column = tensor.stride()
    apart = (row != width * token and height > 1 < width) or (column != 1 and columns > 1)
    if apart and tensor.numel():  # one without numbers has any strides, and keeps them
        return _for_routes(scan, tensor.contiguous())
    # One call of torch, for four.
    size = batch, len(scan.route_codes), height * width, columns
    return tensor.as_strided(size, (image, 0 if sets == 1 else route, token if width > 1 else row, 1))


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
    """Return how many warps keep a device busy; where kernels are only compiled or interpreted, an H100."""
    multiprocessors = torch.cuda.get_device_properties(device).multi_processor_count if device.type == "cuda" else 132
    return multiprocessors * _WARPS_WANTED
