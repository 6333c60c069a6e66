"""Layers that lower the resolution in C++: hands their weights to the library by their addresses."""

import contextlib
import ctypes

import torch
from torch import Tensor
from torch.profiler import record_function

from ...bypass import is_profiled, is_unobserved
from ...whole_block import Downsampling
from .library import DTYPES, loaded_library
from .memory import in_huge_pages
from .weights import Addresses, LayerNormWeights, NotTakenError, are_taken

_SUMS = torch.empty(0, dtype=torch.float32, device="cpu")


class _Downsampling(ctypes.Structure):
    """``Downsampling`` of downsampling.h."""

    _integers = (
        *("dtype", "weight_dtype", "batch", "height", "width", "channels", "out_height", "out_width", "outputs"),
        *("kernel", "stride", "padding", "columns_first", "taps_last", "threads"),
    )
    _fields_ = [
        *((name, ctypes.c_int64) for name in _integers),
        *((name, ctypes.c_void_p) for name in ("x", "weight", "bias")),
        ("norm_in", LayerNormWeights),
        ("norm_out", LayerNormWeights),
        *((name, ctypes.c_void_p) for name in ("y", "scratch")),
    ]


def compute(x: Tensor, layer: Downsampling) -> Tensor | None:
    """Compute :func:`mmmsv.kernels.whole_block.compute_downsampling`."""
    weight = layer.weight
    if not loaded_library().blocks_are_faster or x.dim() != 4 or x.numel() == 0 or not isinstance(weight, Tensor):
        return None
    if weight.dim() == 0 or weight.shape[0] == 0 or not are_taken(x.dtype, weight.dtype):
        return None
    batch, height, width, channels = x.shape
    kernel, stride, outputs = layer.kernel, layer.stride, weight.shape[0]
    addresses = Addresses(weight.dtype)
    try:
        problem = _Downsampling(
            dtype=DTYPES.index(x.dtype),
            weight_dtype=DTYPES.index(weight.dtype),
            batch=batch,
            height=height,
            width=width,
            channels=channels,
            out_height=-(-height // stride),
            out_width=-(-width // stride),
            outputs=outputs,
            kernel=kernel,
            stride=stride,
            padding=layer.padding,
            columns_first=weight.dim() == 2,
            threads=torch.get_num_threads(),
            bias=None if layer.bias is None else addresses.of(layer.bias, outputs),
        )
        problem.weight, problem.taps_last = _lay_out(weight, addresses, channels, kernel)
        if layer.norm_in is not None:
            problem.norm_in = addresses.of_norm(layer.norm_in, kernel * kernel * channels)
        if layer.norm_out is not None:
            problem.norm_out = addresses.of_norm(layer.norm_out, outputs)
    except NotTakenError:
        return None
    x = x.contiguous()
    if not is_unobserved(x, *addresses.tensors):
        return None
    y = in_huge_pages(x.new_empty(batch, problem.out_height, problem.out_width, outputs))
    problem.x, problem.y = x.data_ptr(), y.data_ptr()
    with record_function("mmmsv::downsampling") if is_profiled() else contextlib.nullcontext():
        loaded_library().downsampling.forward(problem, _SUMS)
    return y


def _lay_out(weight: Tensor, addresses: Addresses, channels: int, kernel: int) -> tuple[int, bool]:
    """Return where a weight lies, and whether the tokens of a patch are its last axes in memory.

    Raises:
        NotTakenError: It is not what the library takes.
    """
    if weight.dim() == 2:
        return addresses.of(weight, weight.shape[0], kernel * kernel * channels), False
    if weight.dim() == 4 and not weight.is_contiguous():  # as those of channels-last models are
        return addresses.of(weight.permute(0, 2, 3, 1), weight.shape[0], kernel, kernel, channels), False
    return addresses.of(weight, weight.shape[0], channels, kernel, kernel), True
