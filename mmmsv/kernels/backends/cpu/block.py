"""Whole blocks in C++: hands their weights to the library by their addresses."""

import contextlib
import ctypes
import functools
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.profiler import record_function

from ...arguments import ACTIVATIONS, LARGEST_STRIDE
from ...bypass import is_profiled, is_unobserved
from ...routes import ROUTES, Route
from ...whole_block import Block, Conv, Projection, SelectiveScan, are_steps_recorded, record_steps
from .library import DTYPES, loaded_library
from .memory import in_huge_pages
from .weights import Addresses, LayerNormWeights, NotTakenError, are_taken

# Of a block, ``Step`` of block.cpp.
_STEPS = (
    *("norm", "in_proj", "conv", "x_proj", "scan", "merge_scales", "squeeze_excite", "gate", "out_proj"),
    *("fc1", "fc2"),
)
_SUMS = torch.empty(0, dtype=torch.float32, device="cpu")


class _Layer(ctypes.Structure):
    """``Layer`` of block.h."""

    _fields_ = [("weight", ctypes.c_void_p), ("bias", ctypes.c_void_p)]


class _Conv(ctypes.Structure):
    """``Conv`` of block.h."""

    _fields_ = [
        *((name, ctypes.c_void_p) for name in ("weight", "bias")),
        *((name, ctypes.c_int64) for name in ("kernel", "stride", "activation", "residual")),
    ]


class _S6(ctypes.Structure):
    """``S6`` of block.h."""

    _fields_ = [
        ("x_proj", _Layer),
        *((name, ctypes.c_void_p) for name in ("W_dt", "b_dt", "A_log", "Dskip", "codes")),
        *((name, ctypes.c_int64) for name in ("routes", "carry")),
    ]


class _BlockWeights(ctypes.Structure):
    """``BlockWeights`` of block.h."""

    _integers = ("inner", "states", "rank", "squeezed", "hidden", "gated", "norm_first", "post_norm", "gelu")
    _fields_ = [
        *((name, ctypes.c_int64) for name in _integers),
        ("norm1", LayerNormWeights),
        ("in_proj", _Layer),
        ("full_conv", _Conv),
        ("full_scan", _S6),
        ("half_conv", _Conv),
        ("half_scan", _S6),
        ("out_norm", LayerNormWeights),
        *((name, _Layer) for name in ("reduce", "expand", "out_proj")),
        ("norm2", LayerNormWeights),
        ("fc1", _Layer),
        ("dwconv", _Conv),
        ("fc2", _Layer),
    ]


class _Blocks(ctypes.Structure):
    """``Blocks`` of block.h."""

    _integers = ("dtype", "weight_dtype", "batch", "height", "width", "channels", "threads", "count")
    _fields_ = [
        *((name, ctypes.c_int64) for name in _integers),
        *((name, ctypes.c_void_p) for name in ("blocks", "x", "y", "scratch", "seconds")),
    ]


def compute(x: Tensor, blocks: Sequence[Block]) -> Tensor | None:
    """Compute :func:`mmmsv.kernels.whole_block.compute`."""
    if not loaded_library().blocks_are_faster or x.dim() != 4 or x.numel() == 0:
        return None
    first = blocks[0].norm1.weight
    if not isinstance(first, Tensor) or not are_taken(x.dtype, first.dtype):
        return None
    addresses = Addresses(first.dtype)
    batch, height, width, channels = x.shape
    try:
        described = [_describe(block, channels, addresses) for block in blocks]
    except NotTakenError:
        return None
    x = x.contiguous()
    if not is_unobserved(x, *addresses.tensors):
        return None
    weights = (_BlockWeights * len(described))(*described)
    y = in_huge_pages(torch.empty_like(x))
    seconds = (ctypes.c_double * len(_STEPS))() if are_steps_recorded() else None
    problem = _Blocks(
        dtype=DTYPES.index(x.dtype),
        weight_dtype=DTYPES.index(first.dtype),
        batch=batch,
        height=height,
        width=width,
        channels=channels,
        threads=torch.get_num_threads(),
        count=len(blocks),
        blocks=ctypes.addressof(weights),
        x=x.data_ptr(),
        y=y.data_ptr(),
        seconds=None if seconds is None else ctypes.addressof(seconds),
    )
    with record_function("mmmsv::blocks") if is_profiled() else contextlib.nullcontext():
        loaded_library().blocks.forward(problem, _SUMS)
    if seconds is not None:
        record_steps(dict(zip(_STEPS, seconds, strict=True)))
    return y


def _describe(block: Block, channels: int, addresses: Addresses) -> _BlockWeights:
    """Describe the weights of a block to the library.

    Raises:
        NotTakenError: One is not what the library takes.
    """

    address, norm = addresses.of, addresses.of_norm

    def layer(layer: Projection, inputs: int, outputs: int) -> tuple:
        return address(layer.weight, outputs, inputs), None if layer.bias is None else address(layer.bias, outputs)

    def conv(conv: Conv, channels: int, keeps_size: bool) -> tuple:
        kernel = _last_size(conv.weight)
        strides = (1,) if keeps_size or conv.residual else range(1, LARGEST_STRIDE + 1)
        if type(conv.stride) is not int or type(conv.residual) is not bool:
            raise NotTakenError
        if kernel not in (3, 7) or conv.activation not in ACTIVATIONS or conv.stride not in strides:
            raise NotTakenError
        weight = address(conv.weight, channels, 1, kernel, kernel)
        bias = None if conv.bias is None else address(conv.bias, channels)
        return weight, bias, kernel, conv.stride, ACTIVATIONS.index(conv.activation), conv.residual

    def s6(scan: SelectiveScan) -> tuple:
        if type(scan.routes) is not tuple or not scan.routes or type(scan.carry) is not bool:
            raise NotTakenError
        if any(route not in ROUTES for route in scan.routes):
            raise NotTakenError
        sets = 1 if scan.carry else len(scan.routes)
        return (
            layer(scan.x_proj, inner, sets * (rank + 2 * states)),
            address(scan.W_dt, sets, inner, rank),
            address(scan.b_dt, sets, inner),
            address(scan.A_log, sets, inner, states),
            address(scan.Dskip, sets, inner),
            ctypes.addressof(_codes(scan.routes)),
            len(scan.routes),
            scan.carry,
        )

    full_conv, full_scan = block.full
    inner, states, rank = (_last_size(each) for each in (full_scan.b_dt, full_scan.A_log, full_scan.W_dt))
    described = _BlockWeights(
        inner=inner,
        states=states,
        rank=rank,
        gated=block.gated,
        norm_first=block.norm_first,
        norm1=norm(block.norm1, channels),
        in_proj=layer(block.in_proj, channels, (1 + block.gated) * inner),
        full_conv=conv(full_conv, inner, keeps_size=True),
        full_scan=s6(full_scan),
        out_norm=norm(block.out_norm, inner),
        out_proj=layer(block.out_proj, inner, channels),
    )
    if block.half is not None:
        half_conv, half_scan = block.half
        described.half_conv, described.half_scan = conv(half_conv, inner, keeps_size=False), s6(half_scan)
    if block.squeeze_excite is not None:
        reduce, expand = block.squeeze_excite
        described.squeezed = squeezed = _last_size(expand.weight)
        described.reduce, described.expand = layer(reduce, inner, squeezed), layer(expand, squeezed, inner)
    if block.ffn is not None:
        ffn = block.ffn
        described.hidden = hidden = _last_size(ffn.fc2.weight)
        described.post_norm, described.gelu = ffn.post_norm, ffn.conv is None
        described.norm2 = norm(ffn.norm, channels)
        described.fc1, described.fc2 = layer(ffn.fc1, channels, hidden), layer(ffn.fc2, hidden, channels)
        if ffn.conv is not None:
            described.dwconv = conv(ffn.conv, hidden, keeps_size=True)
    return described


def _last_size(weight: Tensor) -> int:
    """Return the size of the last axis.

    Raises:
        NotTakenError: There is no such axis, or nothing along it.
    """
    if not isinstance(weight, Tensor) or weight.dim() == 0 or weight.shape[-1] == 0:
        raise NotTakenError
    return weight.shape[-1]


@functools.cache
def _codes(routes: tuple[Route, ...]) -> ctypes.Array:
    return (ctypes.c_int64 * len(routes))(*(ROUTES.index(route) for route in routes))
