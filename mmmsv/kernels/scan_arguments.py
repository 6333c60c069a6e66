"""What a backend is given: the arguments of each op, checked and cast by :mod:`.interface`, and sizes read off them."""

from typing import NamedTuple

import torch
from torch import Tensor

from .routes import ROUTES, Route

# Both forward ops return, beside y, the state before every 64th token: what a backward pass restarts from. The spacing
# is part of the ops, so that any backend can go back over what any other has computed. Tokens a chunk, in this package.
CHUNK = 64


def chunks(length: int) -> int:
    """Return how many chunks ``length`` tokens make."""
    return (length + CHUNK - 1) // CHUNK


class Scan1d(NamedTuple):
    """Arguments of :func:`mmmsv.kernels.selective_scan`: B and C with their group axis, weights in the state's dtype.

    Forward returns y ``(batch, D, L)`` and the states ``(batch, chunks(L), N, D)``.
    """

    u: Tensor
    delta: Tensor
    A: Tensor
    B: Tensor
    C: Tensor
    D: Tensor | None
    delta_bias: Tensor | None
    delta_softplus: bool

    @property
    def states_shape(self) -> tuple[int, ...]:
        batch, channels, length = self.u.shape
        return batch, chunks(length), self.A.shape[1], channels

    @property
    def tensors(self) -> tuple[Tensor | None, ...]:
        return self[:7]


class Scan2d(NamedTuple):
    """Arguments of :func:`mmmsv.kernels.scan2d`: routes by their place in ``ROUTES``, weights in the state's dtype.

    Forward returns y ``(batch, H, W, D)``, or ``(batch, routes, H, W, D)`` where they are not merged, and the states
    ``(batch, chunks(sequence_length), N, sequences * D)``.
    """

    x: Tensor
    dt: Tensor
    B: Tensor
    C: Tensor
    W_dt: Tensor
    b_dt: Tensor
    A: Tensor
    Dskip: Tensor
    route_codes: tuple[int, ...]
    carry: bool
    merge: bool

    @property
    def routes(self) -> tuple[Route, ...]:
        return tuple(ROUTES[code] for code in self.route_codes)

    @property
    def sequences(self) -> tuple[tuple[Route, ...], ...]:
        """The routes of each sequence: one of all routes where the state is carried over, else one for each route."""
        return (self.routes,) if self.carry else tuple((route,) for route in self.routes)

    @property
    def y_shape(self) -> tuple[int, ...]:
        batch, *sizes = self.x.shape
        return (batch, *sizes) if self.merge else (batch, len(self.route_codes), *sizes)

    @property
    def states_shape(self) -> tuple[int, ...]:
        batch, height, width, channels = self.x.shape
        length = height * width * len(self.sequences[0])
        return batch, chunks(length), self.A.shape[2], len(self.sequences) * channels

    @property
    def tensors(self) -> tuple[Tensor, ...]:
        return self[:8]

    def map_dtype(self, summed: bool) -> torch.dtype:
        """Return the dtype of a map that several routes may be summed in: that of x would be rounded after each."""
        return self.A.dtype if summed and len(self.route_codes) > 1 else self.x.dtype
