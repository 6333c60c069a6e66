"""Whole blocks of random weights, and the same computed step by step, in any dtype."""

import contextlib
import dataclasses
import itertools
import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from mmmsv.kernels import ROUTES, Route, scan2d, use_backend
from mmmsv.kernels.backends.cpu import block as cpu_block
from mmmsv.kernels.backends.cpu import downsampling as cpu_downsampling
from mmmsv.kernels.backends.cpu.library import loaded_library
from mmmsv.kernels.whole_block import Block, Conv, FeedForward, Norm, Projection, SelectiveScan

ACTIVATIONS = {"none": lambda x: x, "silu": functional.silu, "gelu": functional.gelu}


@contextlib.contextmanager
def on_any_processor() -> Iterator[None]:
    """Let the library compute blocks without AVX-512, too."""
    library = loaded_library()._replace(blocks_are_faster=True)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cpu_block, "loaded_library", lambda: library)
        patch.setattr(cpu_downsampling, "loaded_library", lambda: library)
        yield


def computed(x: Tensor, *blocks: Block) -> Tensor | None:
    """Compute blocks, one after the other, in one call."""
    return cpu_block.compute(x, blocks)


@dataclass(frozen=True)
class BlockCase:
    """Sizes and options of a block; without half routes it has one resolution."""

    size: tuple[int, int] = (6, 5)
    batch: int = 2
    channels: int = 16
    inner: int = 32
    states: int = 1
    rank: int = 1
    gated: bool = True
    full_routes: tuple[Route, ...] = ("row",)
    full_carry: bool = False
    half_routes: tuple[Route, ...] = ("row_rev", "col", "col_rev")
    half_carry: bool = True
    kernel: int = 7  # of the convolution that makes the half map
    stride: int = 2
    norm_first: bool = True
    squeezed: int | None = 4  # None: no squeeze-and-excitation
    ffn: str = "conv"  # "conv", "gelu" or "none"
    hidden: int = 32
    post_norm: bool = False
    biases: bool = True

    def __str__(self) -> str:
        """Name the case in the ids of tests by what differs from the defaults."""
        fields = [field for field in dataclasses.fields(self) if getattr(self, field.name) != field.default]
        return ",".join(f"{field.name}={getattr(self, field.name)}" for field in fields) or "defaults"

    def x(self) -> Tensor:
        generator = torch.Generator().manual_seed(1)
        return torch.randn(self.batch, *self.size, self.channels, generator=generator)

    def block(self) -> Block:
        """Make the block; its branches are about as large as its input."""
        make = _Maker(self.biases)
        C, D, squeezed, ffn = self.channels, self.inner, None, None
        if self.squeezed is not None:
            squeezed = make.projection(D, self.squeezed), make.projection(self.squeezed, D)
        if self.ffn != "none":
            F = self.hidden
            conv = make.conv(F, 3, 1, "gelu", residual=True) if self.ffn == "conv" else None
            ffn = FeedForward(make.norm(C), self.post_norm, make.projection(C, F), conv, make.projection(F, C))
        half = make.conv(D, self.kernel, self.stride, "silu"), self._scan(make, self.half_routes, self.half_carry)
        return Block(
            norm1=make.norm(C),
            in_proj=make.projection(C, 2 * D if self.gated else D),
            gated=self.gated,
            full=(make.conv(D, 3, 1, "silu"), self._scan(make, self.full_routes, self.full_carry)),
            half=half if self.half_routes else None,
            out_norm=make.norm(D),
            norm_first=self.norm_first and bool(self.half_routes),
            squeeze_excite=squeezed,
            out_proj=make.projection(D, C),
            ffn=ffn,
        )

    def _scan(self, make: "_Maker", routes: tuple[Route, ...], carry: bool) -> SelectiveScan:
        sets, D, N, R = 1 if carry else len(routes), self.inner, self.states, self.rank
        return SelectiveScan(
            x_proj=make.projection(D, sets * (R + 2 * N)),
            W_dt=make.normal(sets, D, R) / R**0.5,
            b_dt=make.normal(sets, D) - 1,
            A_log=make.normal(sets, D, N) / 2,
            Dskip=make.normal(sets, D),
            routes=routes,
            carry=carry,
        )


class _Maker:
    """Make random weights."""

    def __init__(self, biases: bool) -> None:
        self._biases, self._generator = biases, torch.Generator().manual_seed(0)

    def normal(self, *shape: int) -> Tensor:
        return torch.randn(shape, generator=self._generator)

    def norm(self, channels: int) -> Norm:
        # Of so large an eps, since a norm of 2 channels that are nearly equal blows up whatever rounding has left.
        return Norm(1 + self.normal(channels) / 4, self.normal(channels) / 4, 0.25)

    def projection(self, inputs: int, outputs: int) -> Projection:
        return Projection(self.normal(outputs, inputs) / inputs**0.5, self._bias(outputs))

    def conv(self, channels: int, kernel: int, stride: int, activation: str, residual: bool = False) -> Conv:
        weight = self.normal(channels, 1, kernel, kernel) / kernel
        return Conv(weight, self._bias(channels), stride, activation, residual)

    def _bias(self, size: int) -> Tensor | None:
        return self.normal(size) / 4 if self._biases else None


def draw_case(draw: random.Random) -> BlockCase:
    """Draw a small block and a small map; channels are seldom whole registers."""
    widths = [1, 2, 3, 8, 15, 16, 17, 24, 33, 48, 50]
    return BlockCase(
        size=draw.choice([(1, 1), (1, 7), (7, 1), (2, 2), (5, 3), (6, 6), (9, 8), (13, 5)]),
        batch=draw.choice([1, 2, 3, 5]),
        channels=draw.choice(widths),
        inner=draw.choice(widths),
        states=draw.randint(1, 3),
        rank=draw.choice([1, 2, 3, 5]),
        gated=draw.random() < 0.5,
        full_routes=tuple(draw.choices(ROUTES, k=draw.randint(1, 4))),
        full_carry=draw.random() < 0.5,
        half_routes=tuple(draw.choices(ROUTES, k=draw.randint(0, 3))),
        half_carry=draw.random() < 0.5,
        stride=draw.randint(1, 4),
        norm_first=draw.random() < 0.5,
        squeezed=draw.choice([None, 1, 4, 17]),
        ffn=draw.choice(["conv", "gelu", "none"]),
        hidden=draw.choice(widths),
        post_norm=draw.random() < 0.5,
        biases=draw.random() < 0.5,
        kernel=draw.choice([3, 7]),
    )


def mapped(part: Any, change: Callable[[Tensor], Any]) -> Any:
    """Return a block, or a part of one, with every weight changed."""
    if isinstance(part, Tensor):
        return change(part)
    if isinstance(part, tuple):
        parts = [mapped(each, change) for each in part]
        return type(part)(*parts) if hasattr(part, "_fields") else tuple(parts)
    return part


def weights_of(block: Block) -> list[Tensor]:
    """Return all weights of a block, in their order."""
    weights = []
    mapped(block, weights.append)
    return weights


def with_one_changed(block: Block, place: int, change: Callable[[Tensor], Any]) -> Block:
    """Return a block with the weight of that place in :func:`weights_of` changed."""
    places = itertools.count()
    return mapped(block, lambda weight: change(weight) if next(places) == place else weight)


def by_steps(x: Tensor, block: Block) -> Tensor:
    """Compute a block by PyTorch's functions and the oracle's scans, all in the dtype of x."""
    block = mapped(block, lambda weight: weight.to(x.dtype))
    inner, z = _linear(_norm(x, block.norm1), block.in_proj), None
    if block.gated:
        inner, z = inner.chunk(2, -1)
    with use_backend("reference"):
        full = _scan(inner, block.full, merge=True)
        half = None if block.half is None else _scan(inner, block.half, merge=not block.norm_first)
    y = _merge(full, half, block)
    weight = 1 if block.squeeze_excite is None else _channel_weights(y, *block.squeeze_excite)
    y = y * weight * (1 if z is None else functional.silu(z))
    x = x + _linear(y, block.out_proj)
    if block.ffn is None:
        return x
    if block.ffn.post_norm:
        return x + _norm(_feed_forward(x, block.ffn), block.ffn.norm)
    return x + _feed_forward(_norm(x, block.ffn.norm), block.ffn)


def _merge(full: Tensor, half: Tensor | None, block: Block) -> Tensor:
    if half is None:
        return _norm(full, block.out_norm)
    if block.norm_first:
        half = _norm(half, block.out_norm).sum(1)
        return _norm(full, block.out_norm) + _resized(half, full, mode="bilinear", align_corners=False)
    return _norm(full + _resized(half, full, mode="nearest"), block.out_norm)


def _resized(half: Tensor, full: Tensor, **options: Any) -> Tensor:
    return functional.interpolate(half.permute(0, 3, 1, 2), full.shape[1:3], **options).permute(0, 2, 3, 1)


def _norm(x: Tensor, norm: Norm) -> Tensor:
    return functional.layer_norm(x, norm.weight.shape, norm.weight, norm.bias, norm.eps)


def _linear(x: Tensor, layer: Projection) -> Tensor:
    return functional.linear(x, layer.weight, layer.bias)


def _conv(x: Tensor, conv: Conv) -> Tensor:
    channels, *_, kernel = conv.weight.shape
    y = functional.conv2d(x.permute(0, 3, 1, 2), conv.weight, conv.bias, conv.stride, kernel // 2, groups=channels)
    y = y.permute(0, 2, 3, 1)
    return ACTIVATIONS[conv.activation](x + y if conv.residual else y)


def _scan(x: Tensor, parts: tuple[Conv, SelectiveScan], merge: bool) -> Tensor:
    conv, scan = parts
    u, (sets, _, rank), states = _conv(x, conv), scan.W_dt.shape, scan.A_log.shape[2]
    projected = _linear(u, scan.x_proj).unflatten(-1, (sets, -1))
    dt, B, C = projected.split([rank, states, states], -1)
    A = -scan.A_log.exp()
    return scan2d(u, dt, B, C, scan.W_dt, scan.b_dt, A, scan.Dskip, scan.routes, scan.carry, merge)


def _channel_weights(y: Tensor, reduce: Projection, expand: Projection) -> Tensor:
    return _linear(_linear(y.mean((1, 2), keepdim=True), reduce).relu(), expand).sigmoid()


def _feed_forward(x: Tensor, ffn: FeedForward) -> Tensor:
    h = _linear(x, ffn.fc1)
    return _linear(functional.gelu(h) if ffn.conv is None else _conv(h, ffn.conv), ffn.fc2)
