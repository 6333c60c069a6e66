r"""Record what the scans of a block are given, and follow the state along a route.

Along a sequence of tokens the state of a channel is

.. math:: h_q = \sum_{t \le q} e^{A S_{tq}} \Delta_t B_t x_t, \qquad S_{tq} = \sum_{t < i \le q} \Delta_i

where S is the sum of the steps that are made after token t, up to token q. All that is shown of a scan follows from it.
One row of S is computed at a time, and no matrix of tokens by tokens.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice

import torch
from torch import Tensor, nn
from torch.nn.functional import softplus

from mmmsv.kernels.routes import Route, unroll
from mmmsv.models.ms2d import MS2D, SS2D, HalfSS2D, Scan2D
from mmmsv.models.s6 import S6

from .networks import Network

# Numbers that are worked on at a time: 64 MiB in float64.
_AT_A_TIME = 1 << 23


@dataclass(frozen=True)
class Sequence:
    """The tokens of one or several routes over a map, through which one state runs, for one photograph.

    Args:
        routes: One route, or those that the state runs on through, in their order.
        full_size: H and W of the full-resolution map.
        stride: How many tokens of that map one of this map stands for, along a side.
        x: What is scanned, ``(H, W, D)``.
        step: Delta, ``(H, W, D)``.
        B: Input projection, ``(H, W, N)``.
        C: Output projection, ``(H, W, N)``.
        A: Decay rate, ``(D, N)``.
        skip: Skip weight, ``(D,)``.
    """

    routes: tuple[Route, ...]
    full_size: tuple[int, int]
    stride: int
    x: Tensor
    step: Tensor
    B: Tensor
    C: Tensor
    A: Tensor
    skip: Tensor

    @property
    def size(self) -> tuple[int, int]:
        """H and W of the map."""
        return self.x.shape[0], self.x.shape[1]

    def token_at(self, pixel: tuple[int, int], image: tuple[int, int]) -> tuple[int, int]:
        """Return row and column of the token that a pixel (row, column) of an image (H, W) is in."""
        row, column = (
            at * tokens // pixels // self.stride
            for at, tokens, pixels in zip(pixel, self.full_size, image, strict=True)
        )
        return row, column

    def last_token(self, route: int) -> tuple[int, int]:
        """Return row and column of the token that a route visits last."""
        return divmod(int(visits(self.routes[route], self.size)[-1]), self.size[1])

    def __str__(self) -> str:
        """Name the resolution."""
        return "full resolution" if self.stride == 1 else f"1/{self.stride} resolution"


def visits(route: Route, size: tuple[int, int]) -> Tensor:
    """Return the index ``row * W + column`` of each token, ``(H * W,)``, in the order in which a route visits them."""
    height, width = size
    return unroll(torch.arange(height * width).view(1, height, width, 1), (route,)).flatten()


def record_sequences(network: Network, image: Tensor, stage: int, block: int) -> list[Sequence]:
    """Run a backbone, and record what the scans of a block were given.

    Args:
        network: With a backbone of this package.
        image: ``(1, 3, H, W)``, as :meth:`~mmmsv.analysis.networks.Network.prepare` makes it.
        stage: Of the block; negative ones count from the last.
        block: Within its stage; the same.

    Returns:
        The full-resolution sequences, then those of lower resolution.

    Raises:
        ValueError: There is no such block, or no scan; or the network computes numbers that are not finite.
    """
    scan = network.scan(stage, block)
    layers = layers_of(scan)
    given: dict[nn.Module, Tensor] = {}

    def record(layer: nn.Module, arguments: tuple[Tensor, ...]) -> None:
        given[layer] = arguments[0]

    hooks = [layer.register_forward_pre_hook(record) for layer in (scan, *layers)]
    try:
        with torch.no_grad():
            # No further than that stage.
            next(islice(network.run_stages(image), stage % len(network.backbone.stages), None))
            height, width = given[scan].shape[1:3]
            found = (_split(layer, given[layer], (height, width), stride) for layer, stride in layers.items())
            return [sequence for its in found for sequence in its]
    finally:
        for hook in hooks:
            hook.remove()


def layers_of(scan: Scan2D) -> dict[S6, int]:
    """Return the scans at each resolution, and how much lower that is."""
    match scan:
        case SS2D():
            return {scan.full_scan: 1}
        case MS2D():
            return {scan.full_scan: 1, scan.half_scan: scan.half_conv.stride[0]}
        case HalfSS2D():
            return {scan.half_scan: scan.half_conv.stride[0]}
    raise TypeError(f"the routes of a {type(scan).__name__} are not known here, only those of SS2D, MS2D and HalfSS2D")


def runs_of(layer: S6) -> list[tuple[Route, ...]]:
    """Return the routes of each sequence of a scan: all of them where the state runs on, else one."""
    return [layer.routes] if layer.carry else [(route,) for route in layer.routes]


def _split(layer: S6, x: Tensor, full_size: tuple[int, int], stride: int) -> Iterator[Sequence]:
    """Cut the scan of a layer into its sequences."""
    dt, B, C = (part[0] for part in layer.project(x))
    A = layer.decay_rate()
    for k, routes in enumerate(runs_of(layer)):
        step = softplus(dt[..., k, :] @ layer.dt_weight[k].T + layer.dt_bias[k])
        yield Sequence(routes, full_size, stride, x[0], step, B[..., k, :], C[..., k, :], A[k], layer.skip[k].detach())


class Walk:
    """The tokens that a sequence visits up to a query token, in their order.

    Args:
        sequence: That is walked along.
        token: Row and column of the query token.
        route: On which of the sequence's routes it is met, from 0 on: the state has been through all of those before.

    Attributes:
        tokens: Their indices on the map, ``(T,)``; the last is that of the query token.

    Raises:
        ValueError: There is no such token or route.
    """

    def __init__(self, sequence: Sequence, token: tuple[int, int], route: int) -> None:
        (height, width), (row, column) = sequence.size, token
        if not (0 <= row < height and 0 <= column < width):
            raise ValueError(f"there is no token {token} on a map of {height} x {width}")
        if not 0 <= route < len(sequence.routes):
            raise ValueError(f"there is no route {route}: the sequence has {len(sequence.routes)}")
        walks = [visits(each, sequence.size) for each in sequence.routes[: route + 1]]
        end = int((walks[-1] == row * width + column).nonzero())
        walks[-1] = walks[-1][: end + 1]
        self.tokens = torch.cat(walks)
        self._passes = torch.cat([torch.full_like(walk, k) for k, walk in enumerate(walks)])
        self._sequence, self._route = sequence, route

    def steps_after(self) -> Iterator[tuple[slice, Tensor]]:
        """Compute S of the formula: the sum of the steps after each token, up to the query token's.

        Yields:
            Some channels, and their sums, ``(T, d)``, float64.
        """
        steps = self._sequence.step.flatten(0, 1)
        channels, states = self._sequence.A.shape
        at_a_time = max(1, _AT_A_TIME // (len(self.tokens) * states))
        for first in range(0, channels, at_a_time):
            part = slice(first, min(first + at_a_time, channels))
            # From the query token backwards, so that the short sums, which count, are exact.
            sums = steps[self.tokens[1:], part].double().flip(0).cumsum(0).flip(0)
            yield part, torch.cat((sums, sums.new_zeros(1, sums.shape[1])))

    def lay_out(self, values: Tensor, fill: float) -> Tensor:
        """Lay a value of each visit onto the map: ``(T, ...)`` to ``(route + 1, H, W, ...)``, elsewhere ``fill``."""
        height, width = self._sequence.size
        maps = values.new_full((self._route + 1, height * width, *values.shape[1:]), fill)
        maps[self._passes, self.tokens] = values
        return maps.unflatten(1, (height, width))


def enlarge(maps: Tensor, stride: int, size: tuple[int, int]) -> Tensor:
    """Bring maps of lower resolution, ``(..., h, w)``, to ``size`` (H, W): each token gets the value of its nearest."""
    rows, columns = (torch.arange(side).div(stride, rounding_mode="floor") for side in size)
    return maps[..., rows, :][..., columns]
