"""A whole block in C++: hands its weights to the library by their addresses."""

import ctypes
import functools

import torch
from torch import Tensor

from mmmsv.compat.torch_versions import get_autocast_dtype, is_autocast_enabled

from ...arguments import ACTIVATIONS
from ...bypass import is_unobserved
from ...routes import ROUTES, Route
from ...whole_block import Block, Conv, Norm, Projection, SelectiveScan, are_steps_recorded, record_steps
from .library import DTYPES, in_huge_pages, loaded_library

# Of a block, ``Step`` of block.cpp.
_STEPS = (
    *("norm", "in_proj", "conv", "x_proj", "scan", "merge_scales", "squeeze_excite", "gate", "out_proj"),
    *("fc1", "fc2"),
)
_SUMS = torch.empty(0, dtype=torch.float32, device="cpu")


class _LayerNorm(ctypes.Structure):
    """``LayerNorm`` of block.cpp."""

    _fields_ = [("weight", ctypes.c_void_p), ("bias", ctypes.c_void_p), ("eps", ctypes.c_double)]


class _Layer(ctypes.Structure):
    """``Layer`` of block.cpp."""

    _fields_ = [("weight", ctypes.c_void_p), ("bias", ctypes.c_void_p)]


class _Conv(ctypes.Structure):
    """``Conv`` of block.cpp."""

    _fields_ = [
        *((name, ctypes.c_void_p) for name in ("weight", "bias")),
        *((name, ctypes.c_int64) for name in ("kernel", "stride", "activation", "residual")),
    ]


class _S6(ctypes.Structure):
    """``S6`` of block.cpp."""

    _fields_ = [
        ("x_proj", _Layer),
        *((name, ctypes.c_void_p) for name in ("W_dt", "b_dt", "A_log", "Dskip", "codes")),
        *((name, ctypes.c_int64) for name in ("routes", "carry")),
    ]


class _Block(ctypes.Structure):
    """``BlockCall`` of block.cpp."""

    _integers = (
        *("dtype", "weight_dtype"),
        *("batch", "height", "width", "channels", "inner", "states", "rank", "squeezed", "hidden"),
        *("gated", "norm_first", "post_norm", "gelu", "threads"),
    )
    _fields_ = [
        *((name, ctypes.c_int64) for name in _integers),
        ("norm1", _LayerNorm),
        ("in_proj", _Layer),
        ("full_conv", _Conv),
        ("full_scan", _S6),
        ("half_conv", _Conv),
        ("half_scan", _S6),
        ("out_norm", _LayerNorm),
        *((name, _Layer) for name in ("reduce", "expand", "out_proj")),
        ("norm2", _LayerNorm),
        ("fc1", _Layer),
        ("dwconv", _Conv),
        ("fc2", _Layer),
        *((name, ctypes.c_void_p) for name in ("x", "y", "scratch", "seconds")),
    ]


class _NotTakenError(Exception):
    """The library does not take what a block has."""


def block(x: Tensor, block: Block) -> Tensor | None:
    """Compute :func:`mmmsv.kernels.whole_block.compute`."""
    if not loaded_library().block_is_faster or x.dim() != 4 or x.numel() == 0 or not _takes_dtypes(x, block):
        return None
    tensors: list[Tensor] = []
    try:
        problem = _describe(x, block, tensors)
    except _NotTakenError:
        return None
    x = x.contiguous()
    if not is_unobserved(x, *tensors):
        return None
    y = in_huge_pages(torch.empty_like(x))
    problem.threads, problem.x, problem.y = torch.get_num_threads(), x.data_ptr(), y.data_ptr()
    seconds = (ctypes.c_double * len(_STEPS))() if are_steps_recorded() else None
    problem.seconds = None if seconds is None else ctypes.addressof(seconds)
    loaded_library().block.forward(problem, _SUMS)
    if seconds is not None:
        record_steps(dict(zip(_STEPS, seconds, strict=True)))
    return y


def _takes_dtypes(x: Tensor, block: Block) -> bool:
    """Return whether maps and weights are in float32, or maps in bfloat16 as autocast or such weights make them."""
    weights = block.norm1.weight.dtype
    if is_autocast_enabled("cpu"):
        products = get_autocast_dtype("cpu")
        return x.dtype == products == torch.bfloat16 and weights in (torch.float32, products)
    return x.dtype == weights and weights in (torch.float32, torch.bfloat16)


def _describe(x: Tensor, block: Block, tensors: list[Tensor]) -> _Block:
    """Describe the weights of a block to the library; collect them in ``tensors``.

    Raises:
        _NotTakenError: One is not what the library takes.
    """
    dtype = block.norm1.weight.dtype

    def address(tensor: Tensor, *shape: int) -> int:
        # In this order: a sparse tensor has no strides to ask about.
        if tensor.dtype != dtype or not tensor.is_cpu or tensor.layout != torch.strided:
            raise _NotTakenError
        if tensor.shape != shape or not tensor.is_contiguous():
            raise _NotTakenError
        tensors.append(tensor)
        return tensor.data_ptr()

    def norm(norm: Norm, channels: int) -> tuple:
        return address(norm.weight, channels), address(norm.bias, channels), norm.eps

    def layer(layer: Projection, inputs: int, outputs: int) -> tuple:
        return address(layer.weight, outputs, inputs), None if layer.bias is None else address(layer.bias, outputs)

    def conv(conv: Conv, channels: int, keeps_size: bool) -> tuple:
        kernel = conv.weight.shape[-1]
        known = kernel in (3, 7) and conv.activation in ACTIVATIONS and conv.stride >= 1
        if not known or (keeps_size and conv.stride > 1) or (conv.residual and conv.stride > 1):
            raise _NotTakenError
        weight = address(conv.weight, channels, 1, kernel, kernel)
        bias = None if conv.bias is None else address(conv.bias, channels)
        return weight, bias, kernel, conv.stride, ACTIVATIONS.index(conv.activation), conv.residual

    def s6(scan: SelectiveScan) -> tuple:
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

    batch, height, width, channels = x.shape
    full_conv, full_scan = block.full
    inner, states, rank = full_scan.b_dt.shape[-1], full_scan.A_log.shape[-1], full_scan.W_dt.shape[-1]
    problem = _Block(
        dtype=DTYPES.index(x.dtype),
        weight_dtype=DTYPES.index(dtype),
        batch=batch,
        height=height,
        width=width,
        channels=channels,
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
        problem.half_conv, problem.half_scan = conv(half_conv, inner, keeps_size=False), s6(half_scan)
    if block.squeeze_excite is not None:
        reduce, expand = block.squeeze_excite
        problem.squeezed = squeezed = reduce.weight.shape[0]
        problem.reduce, problem.expand = layer(reduce, inner, squeezed), layer(expand, squeezed, inner)
    if block.ffn is not None:
        ffn = block.ffn
        problem.hidden = hidden = ffn.fc1.weight.shape[0]
        problem.post_norm, problem.gelu = ffn.post_norm, ffn.conv is None
        problem.norm2 = norm(ffn.norm, channels)
        problem.fc1, problem.fc2 = layer(ffn.fc1, channels, hidden), layer(ffn.fc2, hidden, channels)
        if ffn.conv is not None:
            problem.dwconv = conv(ffn.conv, hidden, keeps_size=True)
    return problem


@functools.cache
def _codes(routes: tuple[Route, ...]) -> ctypes.Array:
    return (ctypes.c_int64 * len(routes))(*(ROUTES.index(route) for route in routes))
