"""The scan by Triton kernels: puts them together, and launches them.

Routes are followed by index arithmetic; no copy of the map is made.

A sequence is cut into spans of whole chunks, as many as fill the GPU. A program walks a span from its first token to
its last (backwards in the backward pass). Where there is more than one span, two kernels come before: one finds what
each span makes of a state of 0, one carries the states over the spans.

Every sum is taken in a fixed order. Where several routes or programs add to one number, each writes its part, in the
state's dtype, and torch adds the parts up: so all of them run at once without atomics, and only the sum is rounded to
the dtype of the inputs. The parts of y and of the gradient of u take a map for each route (none where there is one
route); those of the gradients of B, C and the low-rank step, (2 N + R) / BLOCK_D of that; those of the gradients of the
weights, N + R + 2 numbers for each channel of each program.
"""

from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

from ...arguments import CHUNK, Scan2d, ceil_div
from ...strides import last_axis_innermost

if TYPE_CHECKING:
    from .tiles import Inputs, PerToken, Sizes

# Older ones have no tuples as arguments (before 3.3), or no product of 8 rows on the tensor cores.
_OLDEST_TRITON = (3, 5)
_WARP = 32  # threads of a warp, a channel each
_WARPS = (4, 2, 1)  # of a program
# Tokens that a thread holds in registers.
_TILE, _BACKWARD_TILE = 16, 8
# Warps that keep a multiprocessor busy; fewer leave it waiting for memory.
_WARPS_WANTED = 16
# Fewer spans are not worth two more kernels and a second reading.
_MIN_SPANS = 3


def why_no_triton() -> str | None:
    """Say in one clause why there is no Triton that can compile the kernels; None where there is."""
    try:
        import triton
    except ImportError:
        return "Triton is not installed"
    if tuple(int(part) for part in triton.__version__.split(".")[:2]) < _OLDEST_TRITON:
        return f"its kernels need Triton 3.5 (torch 2.9) or newer, this is {triton.__version__}"
    return None


def why_not(device: torch.device) -> str | None:
    """Say in one clause why the backend cannot run on a device; None where it can."""
    if reason := why_no_triton():
        return reason
    import triton

    from . import kernels

    if not isinstance(kernels.scan_forward, triton.JITFunction):
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
    """Compute y and the states before every 64th token."""
    y = scan.new_routes(scan.map_dtype(scan.merge))
    states = _problem(scan).forward(y.flatten(2, 3))
    return _sum_maps(scan, y) if scan.merge else y, states


def backward(scan: Scan2d, dy: Tensor, states: Tensor) -> tuple[Tensor | None, ...]:
    """Compute the gradients of the tensors, in their order."""
    dy = _for_routes(scan, dy.unsqueeze(3)) if scan.merge else last_axis_innermost(dy.flatten(2, 3))
    dx = scan.new_routes(scan.map_dtype(scan.x.dim() == 4))
    ddelta = None if scan.W_dt is not None else scan.new_routes(scan.x.dtype)
    parts = _problem(scan).backward(
        states.view(scan.states_shape), dy, dx.flatten(2, 3), None if ddelta is None else ddelta.flatten(2, 3)
    )
    # From (batch, blocks, routes, tokens, *) and (batch * spans, *, sequences, D): one set of weights takes all routes.
    routes, sequences = ((1, 2), (0, 2)) if scan.A.shape[0] == 1 else ((1,), (0,))
    ddt, dB, dC = (
        part.sum(routes, keepdim=True)[:, 0].transpose(1, 2).unflatten(1, scan.x.shape[1:3])
        for part in (parts.delta, parts.B, parts.C)
    )
    dW_dt, db_dt, dA, dDskip = (
        part.sum(sequences, keepdim=True)[0].permute(1, 2, 0) for part in (parts.W_dt, parts.bias, parts.A, parts.skip)
    )
    dx = _sum_maps(scan, dx) if scan.x.dim() == 4 else dx.permute(0, 2, 3, 1, 4)
    ddt = ddt if ddelta is None else ddelta.permute(0, 2, 3, 1, 4)
    return dx, ddt, dB, dC, dW_dt, db_dt[..., 0], dA, dDskip[..., 0]


class _Parts(NamedTuple):
    """Gradients whose parts remain to be added up."""

    delta: Tensor  # of the low-rank step, (batch, blocks of channels, routes, tokens, R)
    B: Tensor  # (batch, blocks of channels, routes, tokens, N)
    C: Tensor  # as B
    W_dt: Tensor  # (batch * spans, R, sequences, D)
    bias: Tensor  # (batch * spans, 1, sequences, D)
    A: Tensor  # (batch * spans, N, sequences, D)
    skip: Tensor  # as bias


@dataclass(frozen=True)
class _Problem:
    """The scan as the kernels see it: D channels for each sequence, S sets of weights, one or one a sequence."""

    height: int
    width: int
    u: Tensor  # (batch, routes, tokens, D)
    delta: Tensor  # (batch, routes, tokens, D), or with W_dt (batch, routes, tokens, R)
    B: Tensor  # (batch, routes, tokens, N)
    C: Tensor  # (batch, routes, tokens, N)
    W_dt: Tensor | None  # (S, D, R)
    bias: Tensor | None  # (S, D)
    A: Tensor  # (S, D, N)
    skip: Tensor | None  # (S, D)
    softplus: bool
    route_codes: tuple[int, ...]  # one for each route, or one for all
    per_sequence: int  # routes

    def forward(self, y: Tensor) -> Tensor:
        """Write y ``(batch, routes, tokens, D)`` and return the states."""
        from . import kernels

        sizes, state = self._sizes, self.A.shape[2]
        states = self.A.new_empty(self.u.shape[0], sizes.chunks, state, sizes.sequences * sizes.channels)
        if self.u.numel():
            with torch.cuda.device_of(self.u):
                carry = self._carried(self.u, self.B, reverse=False)
                kernels.scan_forward[self._grid](
                    self._inputs, _per_token(y), states, carry, sizes.hide(), **self._constants(y), TILE=_TILE
                )
        return states

    def backward(self, states: Tensor, dy: Tensor, du: Tensor, ddelta: Tensor | None = None) -> _Parts:
        """Write du and, for a dense step, ddelta ``(batch, routes, tokens, D)``; return the other gradients."""
        from . import kernels
        from .tiles import Gradients

        batch, routes, tokens, _ = self.u.shape
        state = self.A.shape[2]
        # Zeros: the kernel adds to the weights' gradients, and does not run for no tokens.
        per_token = [
            self.A.new_zeros(batch, self._blocks, routes, tokens, size) for size in (self._ranks, state, state)
        ]
        weights = [self.A.new_zeros(self._rows(size)) for size in (self._ranks, 1, state, 1)]
        if self.u.numel():
            views = [_per_token(part.flatten(0, 1)) for part in per_token]
            if ddelta is not None:
                views[0] = _per_token(ddelta)
            with torch.cuda.device_of(self.u):
                kernels.scan_backward[self._grid](
                    self._inputs,
                    _per_token(dy),
                    Gradients(_per_token(du), *views, *weights),
                    states.contiguous(),
                    self._carried(dy, self.C, reverse=True),
                    self.A.new_empty(self._rows(CHUNK // _BACKWARD_TILE * state)),
                    self._sizes.hide(),
                    **self._constants(dy, du, *(() if ddelta is None else (ddelta,))),
                    TILE=_BACKWARD_TILE,
                    maxnreg=255,  # else the assembler spills some, where that fits one more program on a multiprocessor
                    # Where one factor has no more digits than tf32, three products of tf32 are as good as float32.
                    PRECISION="ieee" if self.u.dtype in (torch.float32, torch.float64) else "tf32x3",
                )
        return _Parts(*per_token, *weights)

    def _carried(self, signal: Tensor, projection: Tensor, reverse: bool) -> Tensor:
        """Return the state that enters each span, as :attr:`_Parts.A`: 0 where there is one span."""
        from . import kernels

        sizes, state = self._sizes, self.A.shape[2]
        carry = self.A.new_zeros(self._rows(state))
        if sizes.spans > 1:
            total = self.A.new_empty(self._rows(1))
            kernels.summarise[self._grid](
                self._inputs,
                _per_token(signal),
                _per_token(projection),
                carry,
                total,
                sizes.hide(),
                **self._constants(signal),
                TILE=_TILE,
                REVERSE=reverse,
            )
            programs = self.u.shape[0] * sizes.sequences * state * ceil_div(sizes.channels, _WARP)
            kernels.carry_over[programs,](
                self._inputs.A,
                total,
                carry,
                sizes.hide(),
                N=state,
                TILE=_TILE,
                BLOCK_D=_WARP,
                REVERSE=reverse,
                num_warps=1,
            )
        return carry

    def _rows(self, numbers: int) -> tuple[int, ...]:
        return self.u.shape[0] * self._sizes.spans, numbers, self._sizes.sequences, self._sizes.channels

    @property
    def _ranks(self) -> int:
        return 1 if self.W_dt is None else self.W_dt.shape[2]

    @property
    def _blocks(self) -> int:
        return ceil_div(self.u.shape[3], _block(self.u.shape[3]))

    @property
    def _grid(self) -> tuple[int]:
        return (self.u.shape[0] * self._sizes.sequences * self._sizes.spans * self._blocks,)

    @cached_property
    def _sizes(self) -> "Sizes":
        from .tiles import Sizes

        batch, routes, tokens, channels = self.u.shape
        sequences, length = routes // self.per_sequence, tokens * self.per_sequence
        count = ceil_div(length, CHUNK)
        warps = batch * sequences * ceil_div(channels, _WARP)
        spans = min(count, ceil_div(_warps_wanted(self.u.device), max(warps, 1)))
        span = ceil_div(count, spans) if spans >= _MIN_SPANS else max(count, 1)
        return Sizes(
            height=self.height,
            width=self.width,
            length=length,
            sequences=sequences,
            channels=channels,
            sets=self.A.shape[0],
            spans=ceil_div(count, span),
            span=span,
            chunks=count,
        )

    @cached_property
    def _inputs(self) -> "Inputs":
        from .tiles import Inputs

        W_dt, bias, A, skip = (
            None if weight is None else weight.movedim(-1, 0).contiguous() if weight.dim() == 3 else weight.contiguous()
            for weight in (self.W_dt, self.bias, self.A, self.skip)
        )
        u, delta, B, C = (_per_token(tensor) for tensor in (self.u, self.delta, self.B, self.C))
        return Inputs(u, delta, B, C, W_dt, bias, A, skip)

    def _constants(self, *others: Tensor) -> dict[str, object]:
        """Return what the kernels are compiled for that read the inputs, and read or write others like u."""
        most_parts = self.u[0, ..., 0].numel() * max(self._ranks, self.A.shape[2])
        offsets = max(most_parts, *(_extent(tensor) for tensor in (self.u, self.delta, self.B, self.C, *others)))
        return {
            "N": self.A.shape[2],
            "R": self._ranks,
            "ROUTES": self.route_codes,
            "PER_SEQUENCE": self.per_sequence,
            "SOFTPLUS": self.softplus,
            "WIDE": offsets > torch.iinfo(torch.int32).max,
            "CHUNK": CHUNK,
            "BLOCK_D": _block(self.u.shape[3]),
            "num_warps": _block(self.u.shape[3]) // _WARP,
        }


def _problem(scan: Scan2d) -> _Problem:
    u, delta, B, C = (_for_routes(scan, tensor) for tensor in (scan.maps, scan.dt, scan.B, scan.C))
    return _Problem(
        height=scan.x.shape[1],
        width=scan.x.shape[2],
        u=u,
        delta=delta,
        B=B,
        C=C,
        W_dt=scan.W_dt,
        bias=scan.b_dt,
        A=scan.A,
        skip=scan.Dskip,
        softplus=scan.softplus,
        route_codes=tuple(scan.route_codes) if scan.x.dim() == 4 else (0,),
        per_sequence=len(scan.sequences[0]),
    )


def _for_routes(scan: Scan2d, tensor: Tensor) -> Tensor:
    """View what each token has for each set, ``(batch, H, W, S, *)``, as ``(batch, routes, tokens, *)``."""
    tensor = last_axis_innermost(tensor.flatten(1, 2)).transpose(1, 2)
    return tensor.expand(-1, len(scan.route_codes), -1, -1)


def _sum_maps(scan: Scan2d, maps: Tensor) -> Tensor:
    return (maps[:, 0] if maps.shape[1] == 1 else maps.sum(1)).to(scan.x.dtype)


def _per_token(tensor: Tensor) -> "PerToken":
    from .tiles import PerToken, hidden

    return PerToken(tensor, *map(hidden, tensor.stride()[:3]))


def _extent(tensor: Tensor) -> int:
    """Return the largest offset of an element of one batch index."""
    return sum((size - 1) * stride for size, stride in zip(tensor.shape[1:], tensor.stride()[1:], strict=True))


def _warps_wanted(device: torch.device) -> int:
    """Return how many warps fill a device."""
    multiprocessors = torch.cuda.get_device_properties(device).multi_processor_count if device.type == "cuda" else 1
    return multiprocessors * _WARPS_WANTED


def _block(channels: int) -> int:
    """Return how many channels a program takes: as many as can be without more of them idle than with one warp."""
    return min((_WARP * warps for warps in _WARPS), key=lambda block: -channels % block)
