"""What is timed: the scans and the ops around them at the sizes of MSVMamba-Tiny, and of detection."""

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import NamedTuple

import torch
from torch import Tensor

from mmmsv.kernels import depthwise_conv, gate, layer_norm, merge_scales

from ..cases import MapCase
from .round import Round

# Side of the map, channels of the scan, rank, blocks.
STAGES = ((56, 192, 6, 1), (28, 384, 12, 2), (14, 768, 24, 9), (7, 1536, 48, 2))
HALF = {"routes": ("row_rev", "col", "col_rev"), "carry": True, "merge": False}


def scan_cases(round_: Round) -> Iterator[MapCase]:
    """Yield the scans of each stage, 128 images of 224 x 224, and of stage 1 for one of 800 x 1280."""
    for side, channels, rank, _ in STAGES:
        yield from _both(round_, MapCase(128, side, side, channels, rank, dtype=torch.bfloat16))
    yield from _both(round_, MapCase(1, 200, 320, 192, 6, dtype=torch.bfloat16))


def _both(round_: Round, full: MapCase) -> Iterator[MapCase]:
    half = replace(full, height=(full.height + 1) // 2, width=(full.width + 1) // 2, **HALF)
    for case in (full, half):
        yield case.tiny() if round_.dry else case


class Part(NamedTuple):
    """An op around the scans, with its inputs."""

    name: str
    call: Callable[..., Tensor]
    inputs: tuple[Tensor, ...]
    least_bytes: int  # that it reads and writes forward


def parts(round_: Round) -> Iterator[Part]:
    """Yield the ops of each stage, 128 images of 224 x 224, in bfloat16."""
    for side, channels, _, _ in STAGES:
        batch = 128
        if round_.dry:
            batch, side, channels = 2, max(2, side // 14), 16
        half = (side + 1) // 2

        def leaf(*shape: int, dtype: torch.dtype = torch.bfloat16) -> Tensor:
            return torch.randn(shape, device=round_.device, dtype=dtype).requires_grad_()

        def weight(*shape: int) -> Tensor:
            return leaf(*shape, dtype=torch.float32)

        x, z = leaf(batch, side, side, channels), leaf(batch, side, side, channels)
        routes, bias, size = leaf(batch, 3, half, half, channels), weight(channels), x.numel()
        where = f"{batch} x {side} x {side} x {channels}"
        small, large = weight(channels, 1, 3, 3), weight(channels, 1, 7, 7)
        yield Part(f"conv 3 x 3, SiLU, {where}", _silu, (x, small, bias), 4 * size)
        yield Part(f"x + conv 3 x 3, GELU, {where}", _gelu, (x, small, bias), 4 * size)
        yield Part(f"conv 7 x 7 stride 2, SiLU, {where}", _silu_2, (x, large, bias), 5 * size // 2)
        yield Part(f"merge_scales, {where}", _merge, (x, routes, weight(channels), bias), 4 * size + 2 * routes.numel())
        yield Part(f"layer_norm, {where}", _norm, (x, weight(channels), bias), 4 * size)
        yield Part(f"gate, {where}", gate, (x, z, weight(batch, channels)), 6 * size)


def _silu(*tensors: Tensor) -> Tensor:
    return depthwise_conv(*tensors, activation="silu")


def _gelu(*tensors: Tensor) -> Tensor:
    return depthwise_conv(*tensors, activation="gelu", residual=True)


def _silu_2(*tensors: Tensor) -> Tensor:
    return depthwise_conv(*tensors, stride=2, activation="silu")


def _merge(*tensors: Tensor) -> Tensor:
    y, _ = merge_scales(*tensors, 1e-5, norm_first=True)
    return y


def _norm(*tensors: Tensor) -> Tensor:
    return layer_norm(*tensors, 1e-5)
