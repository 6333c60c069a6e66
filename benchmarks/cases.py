"""Make what is scanned: calls of both ops, with the strides and the values of their arguments in a model."""

import math
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from mmmsv.kernels import Route

from .baselines import Implementation

Inputs = tuple[Tensor, ...]


@dataclass(frozen=True)
class MapCase:
    """A call of ``scan2d``."""

    batch: int
    height: int
    width: int
    channels: int
    rank: int
    state: int = 1
    routes: tuple[Route, ...] = ("row",)
    carry: bool = False
    merge: bool = True
    dtype: torch.dtype = torch.float32

    def __str__(self) -> str:
        how = f"{len(self.routes)} routes, {'one sequence' if self.carry else 'merged'}" if len(self.routes) > 1 else ""
        return _label((self.batch, self.height, self.width, self.channels), self.state, self.dtype, how)

    @property
    def tokens(self) -> int:
        """Of an image, on all routes."""
        return self.height * self.width * len(self.routes)

    @property
    def pairs(self) -> int:
        """Tokens times channels, of all images and routes."""
        return self.batch * self.tokens * self.channels

    @property
    def moved(self) -> int:
        """Numbers that any implementation reads and writes: x once for each route, and y."""
        return self.pairs + (self.pairs // len(self.routes) if self.merge else self.pairs)

    def tiny(self) -> "MapCase":
        """Return a case of the same kind that takes next to no time."""
        sides = {"height": max(2, self.height // 7), "width": max(2, self.width // 7)}
        return replace(self, batch=min(self.batch, 2), channels=max(8, self.channels // 24), **sides)

    def inputs(self, device: torch.device) -> Inputs:
        """Draw the inputs, leaves that require gradients: dt, B and C views of one tensor, as the model makes them."""
        draw = _Draw(device)
        sets = 1 if self.carry else len(self.routes)
        tokens = (self.batch, self.height, self.width)
        sizes = (self.rank, self.state, self.state)
        dt, B, C = draw.normal(*tokens, sets, sum(sizes)).to(self.dtype).split(sizes, -1)
        return _leaves(
            draw.normal(*tokens, self.channels).to(self.dtype),
            dt,
            B,
            C,
            draw.normal(sets, self.channels, self.rank) * self.rank**-0.5,
            draw.step_bias(sets, self.channels),
            draw.decay_rate(sets, self.channels, self.state),
            draw.normal(sets, self.channels),
        )

    def output_gradient(self, inputs: Inputs) -> Tensor:
        """Draw a gradient of y."""
        batch, *sizes = inputs[0].shape
        return inputs[0].new_empty(batch, *(() if self.merge else (len(self.routes),)), *sizes).normal_()

    def run(self, implementation: Implementation, inputs: Inputs) -> Tensor:
        """Compute y."""
        return implementation.scan2d(*inputs, self.routes, self.carry, self.merge)


@dataclass(frozen=True)
class SequenceCase:
    """A call of ``selective_scan``, u and delta channels-last in memory or not."""

    batch: int
    channels: int
    length: int
    state: int
    channels_last: bool
    dtype: torch.dtype = torch.float32

    def __str__(self) -> str:
        how = "channels-last" if self.channels_last else "contiguous"
        return _label((self.batch, self.channels, self.length), self.state, self.dtype, how)

    @property
    def tokens(self) -> int:
        """Of a sequence."""
        return self.length

    @property
    def pairs(self) -> int:
        """Tokens times channels, of all sequences."""
        return self.batch * self.channels * self.tokens

    @property
    def moved(self) -> int:
        """Numbers that any implementation reads and writes: u, delta and y."""
        return 3 * self.pairs

    def tiny(self) -> "SequenceCase":
        """Return a case of the same kind that takes next to no time."""
        return replace(self, batch=min(self.batch, 2), channels=8, length=max(16, self.length // 32))

    def inputs(self, device: torch.device) -> Inputs:
        """Draw the inputs, leaves that require gradients."""
        draw = _Draw(device)
        return _leaves(
            self._per_token(draw),
            self._per_token(draw),
            draw.decay_rate(self.channels, self.state),
            draw.normal(self.batch, 1, self.state, self.length).to(self.dtype),
            draw.normal(self.batch, 1, self.state, self.length).to(self.dtype),
            draw.normal(self.channels),
            draw.step_bias(self.channels),
        )

    def output_gradient(self, inputs: Inputs) -> Tensor:
        """Draw a gradient of y."""
        return torch.randn_like(inputs[0])

    def run(self, implementation: Implementation, inputs: Inputs) -> Tensor:
        """Compute y."""
        return implementation.selective_scan(*inputs)

    def _per_token(self, draw: "_Draw") -> Tensor:
        if self.channels_last:
            return draw.normal(self.batch, self.length, self.channels).to(self.dtype).transpose(1, 2)
        return draw.normal(self.batch, self.channels, self.length).to(self.dtype)


Case = MapCase | SequenceCase


class _Draw:
    """Draws float32 tensors as they are in a network at the start of its training; the same ones each time."""

    def __init__(self, device: torch.device) -> None:
        self.generator = torch.Generator(device).manual_seed(0)
        self.device = device

    def normal(self, *shape: int) -> Tensor:
        return torch.randn(shape, generator=self.generator, device=self.device)

    def step_bias(self, *shape: int) -> Tensor:
        """The inverse softplus of steps log-uniform in [1e-3, 0.1]."""
        share = torch.rand(shape, generator=self.generator, device=self.device)
        step = torch.exp(math.log(1e-3) + share * math.log(100))
        return step + torch.log(-torch.expm1(-step))

    def decay_rate(self, *shape: int) -> Tensor:
        """-1, ..., -N."""
        return -torch.arange(1.0, shape[-1] + 1, device=self.device).expand(shape).contiguous()


def _leaves(*tensors: Tensor) -> Inputs:
    return tuple(tensor.detach().requires_grad_() for tensor in tensors)


def _label(sizes: tuple[int, ...], state: int, dtype: torch.dtype, how: str) -> str:
    parts = [" x ".join(map(str, sizes)), how, f"N = {state}" if state > 1 else ""]
    if dtype != torch.float32:
        parts.append(str(dtype).removeprefix("torch."))
    return ", ".join(part for part in parts if part)
