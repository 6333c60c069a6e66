"""The arguments of each op, checked and cast, as kernels are given them, and the shapes of what kernels return."""

from math import prod
from typing import Literal, NamedTuple, get_args

import torch
from torch import Tensor

from .routes import ROUTES, Route

# Tokens of a chunk on CPUs, and the most elsewhere.
CHUNK = 64
# Of a convolution: beyond the kernels' size it has no use, and scratch grows with it.
LARGEST_STRIDE = 64
Activation = Literal["none", "silu", "gelu"]
ACTIVATIONS: tuple[Activation, ...] = get_args(Activation)


def choose_chunk(device: torch.device, state: int) -> int:
    """Return the tokens of a chunk, for states of so many numbers.

    Small ones save a GPU from computing a state twice; they are longer for larger states, so that no more is kept.
    """
    return CHUNK if device.type == "cpu" else min(8 * state, CHUNK)


def ceil_div(count: int, by: int) -> int:
    """Return ``count / by``, rounded up."""
    return -(-count // by)


def _check_kept(op: str, chunk: int) -> None:
    """Raise RuntimeError where a forward pass has kept no states."""
    if not chunk:
        raise RuntimeError(
            f"{op}: this program was recorded without gradients; record it with inputs that require them"
        )


class SelectiveScan(NamedTuple):
    """Arguments of :func:`mmmsv.kernels.selective_scan`; weights and h0 are in the dtype of the state.

    The D channels are G groups, each with B and C of its own. Kernels keep the state before each chunk.

    Args:
        u: ``(batch, L, D)``.
        delta: Step before bias and softplus, ``(batch, L, D)``.
        B: ``(batch, L, G, N)``.
        C: ``(batch, L, G, N)``.
        z: Gate, ``(batch, L, D)``.
        A: ``(D, N)``.
        D: ``(D,)``.
        delta_bias: ``(D,)``.
        h0: State before the first token, ``(batch, N, D)``; 0 where it is None.
        softplus: Whether the step goes through a softplus, after ``delta_bias`` was added.
        chunk: As that of :class:`Scan2d`.
    """

    u: Tensor
    delta: Tensor
    B: Tensor
    C: Tensor
    z: Tensor | None
    A: Tensor
    D: Tensor | None
    delta_bias: Tensor | None
    h0: Tensor | None
    softplus: bool
    chunk: int

    @property
    def states_shape(self) -> tuple[int, ...]:
        """Shape of the states before each chunk, ``(batch, chunks, N, D)``."""
        batch, length, channels = self.u.shape
        return batch, ceil_div(length, self.chunk), self.A.shape[1], channels

    def kept_states(self, kept: Tensor) -> Tensor:
        """View what a forward pass has kept as the states.

        Raises:
            RuntimeError: It has kept none: a program was recorded without gradients, and is asked for some.
        """
        _check_kept("selective_scan", self.chunk)
        return kept.view(self.states_shape)

    @property
    def sizes(self) -> tuple[int, int]:
        """The groups and the channels of each, (G, D / G)."""
        return self.B.shape[2], self.A.shape[0] // self.B.shape[2]

    def by_group(self) -> "SelectiveScan":
        """View the channels as G groups of D / G: ``(batch, L, G, D / G)``, ``(G, D / G, N)`` and so on."""
        sizes = self.sizes
        z, h0 = (None if each is None else each.unflatten(2, sizes) for each in (self.z, self.h0))
        D, bias = (None if each is None else each.unflatten(0, sizes) for each in (self.D, self.delta_bias))
        u, delta, A = self.u.unflatten(2, sizes), self.delta.unflatten(2, sizes), self.A.unflatten(0, sizes)
        return self._replace(u=u, delta=delta, z=z, h0=h0, A=A, D=D, delta_bias=bias)

    def as_maps(self) -> "Scan2d":
        """Return the scan over maps of one row, a map and a sequence for each group."""
        u, delta, B, C, _, A, D, bias, _, softplus, chunk = self.by_group()
        routes = [0] * len(A)
        x, dt, B, C = (each.unsqueeze(1) for each in (u, delta, B, C))
        return Scan2d(x, dt, B, C, None, bias, A, D, routes, False, False, softplus, chunk, None)

    def new_results(self) -> tuple[Tensor, Tensor, Tensor]:
        """Make an uninitialised y, the last state, ``(batch, N, D)``, and what is kept: the states, flat."""
        batch, _, channels = self.u.shape
        last = self.A.new_empty(batch, self.A.shape[1], channels)
        return torch.empty_like(self.u), last, self.A.new_empty(prod(self.states_shape) if self.chunk else 0)


class Scan2d(NamedTuple):
    """Sequences over maps: the arguments of :func:`mmmsv.kernels.scan2d`.

    A sequence visits the tokens of a map along its routes; all sequences share one map. Kernels that walk over maps
    also scan the one-row maps of :meth:`SelectiveScan.as_maps`, where each sequence has a map of its own, and the step
    is that of each channel.

    Args:
        x: Map that all sequences share, ``(batch, H, W, D)``, or one for each, ``(batch, H, W, S, D)``.
        dt: Low-rank step, ``(batch, H, W, S, R)``; without ``W_dt`` the step of each channel, ``(batch, H, W, S, D)``.
        B: ``(batch, H, W, S, N)``.
        C: ``(batch, H, W, S, N)``.
        W_dt: ``(S, D, R)``.
        b_dt: ``(S, D)``.
        A: ``(S, D, N)``; weights are in the dtype of the state, S is 1 or the number of sequences.
        Dskip: ``(S, D)``.
        route_codes: Routes by their place in ``ROUTES``.
        carry: Whether they are one sequence; otherwise each is a sequence.
        merge: Whether y is summed over the routes.
        softplus: Whether the step goes through a softplus, after ``b_dt`` was added.
        chunk: The state before each chunk of so many tokens is kept for a backward pass; each route begins one. 0: none
            is kept. It is part of the op, so that any backend can go back over what any other has computed.
        dtype: Of y, that of the state; that of x where it is None.
    """

    x: Tensor
    dt: Tensor
    B: Tensor
    C: Tensor
    W_dt: Tensor | None
    b_dt: Tensor | None
    A: Tensor
    Dskip: Tensor | None
    route_codes: list[int]
    carry: bool
    merge: bool
    softplus: bool
    chunk: int
    dtype: torch.dtype | None

    @property
    def step_weight(self) -> Tensor:
        """W_dt.

        Raises:
            TypeError: There is none: the step is that of each channel.
        """
        if self.W_dt is None:
            raise TypeError("scan2d: W_dt is None, expected a tensor; selective_scan takes the step of each channel")
        return self.W_dt

    @property
    def maps(self) -> Tensor:
        """The maps, ``(batch, H, W, 1 or sequences, D)``."""
        return self.x.unsqueeze(3) if self.x.dim() == 4 else self.x

    @property
    def sequences(self) -> tuple[tuple[Route, ...], ...]:
        """The routes of each sequence."""
        routes = tuple(ROUTES[code] for code in self.route_codes)
        return (routes,) if self.carry else tuple((route,) for route in routes)

    @property
    def states_shape(self) -> tuple[int, ...]:
        """Shape of the states before each chunk of each route, ``(batch, chunks, N, sequences * D)``."""
        batch, height, width = self.x.shape[:3]
        sequences, routes = (1, len(self.route_codes)) if self.carry else (len(self.route_codes), 1)
        _, channels, state = self.A.shape
        return batch, routes * ceil_div(height * width, self.chunk), state, sequences * channels

    def kept_states(self, kept: Tensor) -> Tensor:
        """View what a forward pass has kept as the states.

        Raises:
            RuntimeError: It has kept none: a program was recorded without gradients, and is asked for some.
        """
        _check_kept("scan2d", self.chunk)
        return kept.view(self.states_shape)

    @property
    def y_dtype(self) -> torch.dtype:
        """The dtype of y."""
        return self.dtype or self.x.dtype

    def map_dtype(self, dtype: torch.dtype, summed: bool) -> torch.dtype:
        """Return the dtype of a map that several routes may be summed in: ``dtype`` would be rounded after each."""
        return self.A.dtype if summed and len(self.route_codes) > 1 else dtype

    def in_one_dtype(self) -> "Scan2d":
        """Cast what belongs to tokens to the dtype of the state if y has another than x, for kernels that read one."""
        if self.y_dtype == self.x.dtype:
            return self
        x, dt, B, C = (tensor.to(self.A.dtype) for tensor in self[:4])
        return self._replace(x=x, dt=dt, B=B, C=C)

    def new_merged(self, dtype: torch.dtype) -> Tensor:
        """Make an uninitialised y that is summed over the routes, ``(batch, H, W, D)``."""
        return self.x.new_empty((*self.x.shape[:3], self.x.shape[-1]), dtype=dtype)

    def new_routes(self, dtype: torch.dtype) -> Tensor:
        """Make an uninitialised map for each route, ``(batch, routes, H, W, D)``."""
        (batch, height, width), channels, routes = self.x.shape[:3], self.x.shape[-1], len(self.route_codes)
        if self.x.dim() == 4:
            return self.x.new_empty(batch, routes, height, width, channels, dtype=dtype)
        # As x has them, one beside the other: together they are the channels of a 1-D scan.
        return self.x.new_empty(batch, height, width, routes, channels, dtype=dtype).permute(0, 3, 1, 2, 4)

    def new_results(self) -> tuple[Tensor, Tensor]:
        """Make an uninitialised y and what is kept: the states, flat."""
        y = self.new_merged(self.y_dtype) if self.merge else self.new_routes(self.y_dtype)
        # Flat: as an axis of its own, a number of chunks that happens to be 1 would be a special case to torch.export.
        return y, self.A.new_empty(prod(self.states_shape) if self.chunk else 0)


class DepthwiseConv(NamedTuple):
    """Arguments of :func:`mmmsv.kernels.depthwise_conv`, weights in the dtype of sums; kernels keep nothing."""

    x: Tensor
    weight: Tensor
    bias: Tensor | None
    stride: int
    activation: str
    residual: bool

    @property
    def y_shape(self) -> tuple[int, ...]:
        """Shape of y."""
        batch, height, width, channels = self.x.shape
        return batch, ceil_div(height, self.stride), ceil_div(width, self.stride), channels

    def new_results(self) -> tuple[Tensor, Tensor]:
        """Make an uninitialised y and what is kept."""
        return self.x.new_empty(self.y_shape), self.x.new_empty(0)


class Gate(NamedTuple):
    """Arguments of :func:`mmmsv.kernels.gate`, the weight in the dtype of sums; kernels keep nothing."""

    y: Tensor
    z: Tensor | None
    weight: Tensor | None

    def new_results(self) -> tuple[Tensor, Tensor]:
        """Make an uninitialised result and what is kept."""
        return self.y.new_empty(self.y.shape), self.y.new_empty(0)


class LayerNorm(NamedTuple):
    """Arguments of :func:`mmmsv.kernels.layer_norm`, weights in the dtype of sums.

    Kernels keep mean and inverse deviation of each token.
    """

    x: Tensor
    weight: Tensor
    bias: Tensor
    eps: float
    dtype: torch.dtype

    def new_results(self) -> tuple[Tensor, Tensor]:
        """Make an uninitialised y and what is kept, flat."""
        tokens = prod(self.x.shape[:3])
        return self.x.new_empty(self.x.shape, dtype=self.dtype), self.weight.new_empty(tokens * 2)


class MergeScales(NamedTuple):
    """Arguments of :func:`mmmsv.kernels.merge_scales`, weights in the dtype of sums; its results are y and its mean.

    Kernels keep mean and inverse deviation of each token that goes through the norm.
    """

    full: Tensor
    half: Tensor
    weight: Tensor
    bias: Tensor
    eps: float
    norm_first: bool
    dtype: torch.dtype | None

    @property
    def y_dtype(self) -> torch.dtype:
        """The dtype of y and of its mean."""
        return self.dtype or self.full.dtype

    def new_results(self) -> tuple[Tensor, Tensor, Tensor]:
        """Make an uninitialised y, its mean, and what is kept, flat."""
        batch, routes, height, width, channels = self.half.shape
        tokens = self.full.shape[1] * self.full.shape[2] + (routes * height * width if self.norm_first else 0)
        y = self.full.new_empty(self.full.shape, dtype=self.y_dtype)
        return y, y.new_empty(batch, channels), self.weight.new_empty(batch * tokens * 2)


class Linear(NamedTuple):
    """Arguments of :func:`mmmsv.kernels.linear`; kernels keep nothing."""

    x: Tensor
    weight: Tensor
    bias: Tensor | None

    def new_results(self) -> tuple[Tensor, Tensor]:
        """Make an uninitialised y and what is kept."""
        return self.x.new_empty((*self.x.shape[:-1], self.weight.shape[0])), self.x.new_empty(0)
