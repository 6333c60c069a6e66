"""A scan as its kernels see it, and their launches."""

from dataclasses import dataclass
from math import prod
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor

from ...arguments import CHUNK, Scan2d, ceil_div
from .maps import for_routes
from .plan import Plan, Tile, backward_tile, forward_tile, plan_scan
from .step import dense_step

if TYPE_CHECKING:  # which imports Triton
    from .launch import Launch

# Spans that carry_over takes at once, and columns.
_CARRY_ROWS, _CARRY_COLUMNS = 256, 8


class Gradients(NamedTuple):
    """Gradients, some of them in parts."""

    u: Tensor  # (batch, routes or 1, H, W, D)
    delta: Tensor  # (batch, routes or 1, H, W, D)
    z: Tensor | None  # (batch, routes, H, W, D), strides of u's
    BC: Tensor  # (batch, blocks of channels, routes, tokens, 2 N)
    weights: Tensor  # of bias, skip and A, (batch, spans, 2 + N, sequences, D)


@dataclass(frozen=True)
class Problem:
    """The scan as the kernels see it: D channels for each sequence, S sets of weights, one or one a sequence."""

    scan: Scan2d
    u: Tensor  # (batch, routes, tokens, D)
    delta: Tensor  # (batch, routes, tokens, D)
    z: Tensor | None  # (batch, routes, tokens, D)
    B: Tensor  # (batch, routes, tokens, N)
    C: Tensor  # (batch, routes, tokens, N), strides of B
    bias: Tensor | None  # (S, D)
    A: Tensor  # (N, S, D)
    skip: Tensor | None  # (S, D)

    @classmethod
    def of(cls, scan: Scan2d, z: Tensor | None = None) -> "Problem":
        """View the arguments as the kernels read them, with a gate ``(batch, H, W, S, D)``; make the step."""
        routes = len(scan.route_codes)
        u, delta, B, C = (for_routes(tensor, routes) for tensor in (scan.maps, dense_step(scan), scan.B, scan.C))
        if B.stride() != C.stride():
            B, C = B.contiguous(), C.contiguous()
        z = None if z is None else for_routes(z, routes)
        bias, skip = (None if weight is None else weight.contiguous() for weight in (scan.b_dt, scan.Dskip))
        return cls(scan, u, delta, z, B, C, bias, scan.A.movedim(-1, 0).contiguous(), skip)

    def forward(self, y: Tensor, first: Tensor | None = None, last: Tensor | None = None) -> Tensor:
        """Write y, and the last state if there is a tensor for it; return the states before chunks.

        Args:
            y: ``(batch, routes, tokens, D)``.
            first: The first state, ``(batch, N, sequences, D)``; 0 where it is None.
            last: The last state, likewise, contiguous.
        """
        from .launch import launch
        from .scan_forward import scan_forward

        states = self.A.new_empty(prod(self.scan.states_shape)) if self.scan.chunk else None
        if self.u.numel():
            plan = self._plan(forward_tile(self.A.shape[0], self.A.dtype), y, first)
            carry = self._carried(plan, self.u, None, self.B, first, last, backward=False)
            inputs = (self.u, self.delta, self.z, self.B, self.C, self.bias, self.A, self.skip)
            launch(scan_forward, (*inputs, y, states, carry), _prepare_forward, plan, self.chunk, last is not None)
            _copy_row(carry, -1, last)
        elif last is not None:
            _copy_state(first, last)
        return self.A.new_empty(0) if states is None else states

    def backward(
        self, states: Tensor, dy: Tensor, dlast: Tensor | None = None, dfirst: Tensor | None = None
    ) -> Gradients:
        """Compute the gradients.

        Args:
            states: The states before chunks.
            dy: The gradient of y, ``(batch, routes, tokens, D)``.
            dlast: That of the last state, ``(batch, N, sequences, D)``; 0 where it is None.
            dfirst: That of the first state, likewise, contiguous; written if there is a tensor for it.
        """
        from .launch import launch
        from .scan_backward import scan_backward

        batch, routes, tokens, channels = self.u.shape
        scan, state, sequences = self.scan, self.A.shape[0], self._sequences
        plan = self._plan(backward_tile(state, scan.x.dtype), dy, dlast)
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
        dz = None if self.z is None else scan.new_routes(scan.x.dtype)
        dBC = self.A.new_empty(batch, plan.blocks, routes, tokens, 2 * state)
        dweights = self.A.new_empty(batch, plan.rows, 2 + state, sequences, channels)
        gradients = Gradients(du, ddelta, dz, dBC, dweights)
        if not self.u.numel():
            for gradient in gradients:
                if gradient is not None:
                    gradient.zero_()
            if dfirst is not None:
                _copy_state(dlast, dfirst)
            return gradients
        tiles = self.chunk // plan.constants["TILE"]
        starts = self.A.new_empty(batch * plan.rows * (tiles + 1 if tiles > 1 else 0), state, sequences * channels)
        carry = self._carried(plan, dy, self.z, self.C, dlast, dfirst, backward=True)
        inputs = (self.u, self.delta, self.z, self.B, self.C, self.bias, self.A, self.skip, dy)
        tensors = (*inputs, du, ddelta, *sums, dz, dBC, dweights, states.contiguous(), carry, starts)
        launch(scan_backward, tensors, _prepare_backward, plan, self.chunk, summed, dfirst is not None)
        _copy_row(carry, 0, dfirst)
        return gradients

    def _carried(
        self,
        plan: Plan,
        signal: Tensor,
        z: Tensor | None,
        projection: Tensor,
        start: Tensor | None,
        end: Tensor | None,
        backward: bool,
    ) -> Tensor:
        """Return the state that enters each span, ``(batch, spans, N, sequences * D)``; if none does, any numbers.

        It is the memory of ``end`` where that has as many numbers.
        """
        batch, channels, state, sequences = self.u.shape[0], self.u.shape[3], self.A.shape[0], self._sequences
        size = batch, plan.rows, state, sequences * channels
        carry = self.A.new_empty(size) if end is None or plan.rows > 1 else end.view(size)
        if plan.rows > 1:
            from .launch import launch
            from .spans import carry_over, summarise

            ends, totals = torch.empty_like(carry), self.A.new_empty(batch, plan.rows, sequences * channels)
            tensors = (signal, self.delta, z, projection, self.bias, self.A, ends, totals)
            launch(summarise, tensors, _prepare_summary, plan, backward)
            start = None if start is None else start.contiguous()
            launch(carry_over, (self.A, totals, ends, start, carry), _prepare_carry, backward)
        elif start is not None:
            carry.view(start.shape).copy_(start)
        return carry

    @property
    def chunk(self) -> int:
        """Tokens of a chunk, whether or not the states before them are kept."""
        return self.scan.chunk or CHUNK

    @property
    def _sequences(self) -> int:
        return len(self.scan.sequences)

    def _plan(self, tile: Tile, other: Tensor, first: Tensor | None = None) -> Plan:
        tensors = (self.u, self.delta, self.z, self.B, self.C, self.A, other)
        return plan_scan(self.scan, tile, self.chunk, first is not None, *tensors)


def _copy_row(carry: Tensor, row: int, state: Tensor | None) -> None:
    """Copy a row of ``(batch, spans, N, sequences * D)`` to a state, if there is one; a single row is in its memory."""
    if state is not None and carry.shape[1] > 1:
        state.copy_(carry[:, row].view(state.shape))


def _copy_state(source: Tensor | None, state: Tensor) -> None:
    """Copy a state; fill with 0 where the source is None."""
    if source is None:
        state.zero_()
    else:
        state.copy_(source)


def _prepare_forward(
    u: Tensor,
    delta: Tensor,
    z: Tensor | None,
    B: Tensor,
    C: Tensor,
    bias: Tensor | None,
    A: Tensor,
    skip: Tensor | None,
    y: Tensor,
    states: Tensor | None,
    carry: Tensor,
    plan: Plan,
    chunk: int,
    keeps_end: bool,
) -> "Launch":
    # maxnreg as in the backward pass.
    maxnreg = 255 if A.shape[0] > 1 else None
    constants = {"SPLIT": plan.spans > 0, "KEEP_END": keeps_end, "CHUNK": chunk, "maxnreg": maxnreg}
    return plan.launch((u, delta, z, B, y), **constants)


def _prepare_backward(*given: Any) -> "Launch":
    u, delta, z, B, _, _, _, _, dy, du, ddelta, *_, plan, chunk, summed, keeps_end = given
    views = [gradient.expand(-1, u.shape[1], -1, -1, -1).flatten(2, 3) for gradient in (du, ddelta)]
    # maxnreg: else the assembler spills some, where that fits one more program on a multiprocessor.
    constants = {"SPLIT": plan.spans > 0, "KEEP_END": keeps_end, "SUMMED": summed, "CHUNK": chunk, "maxnreg": 255}
    return plan.launch((u, delta, z, B, dy, *views), **constants)


def _prepare_summary(
    signal: Tensor,
    delta: Tensor,
    z: Tensor | None,
    projection: Tensor,
    bias: Tensor | None,
    A: Tensor,
    ends: Tensor,
    totals: Tensor,
    plan: Plan,
    backward: bool,
) -> "Launch":
    return plan.launch((signal, delta, z, projection), BACKWARD=backward)


def _prepare_carry(
    A: Tensor, totals: Tensor, ends: Tensor, start: Tensor | None, carry: Tensor, backward: bool
) -> "Launch":
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
