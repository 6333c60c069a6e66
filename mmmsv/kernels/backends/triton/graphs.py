"""Captures launches in CUDA graphs, and replays them, where MMMSV_CUDA_GRAPHS=1 asks for it: a graph is one launch.

A graph reads weights where they lay when it was captured. So their addresses are part of what a graph is found by, and
weights that are changed in place are read as they are; nothing that is made of them outlives a replay.
"""

import os
import threading
from collections.abc import Callable, Hashable
from functools import cache
from typing import Any, NamedTuple, TypeVar

import torch
from torch import Tensor

_ENVIRONMENT = "MMMSV_CUDA_GRAPHS"
# A graph keeps the memory of what lies between its launches, some ten maps like x, which all graphs of a GPU share: x
# may have so much of the GPU's memory.
_LARGEST_PART = 1 / 512
_MOST_KEPT = 64
# A size that comes once or twice, as those of a detector's images, is not worth a capture, which takes as long as ten.
_CALLS_BEFORE = 3
T = TypeVar("T")


class _Graph(NamedTuple):
    graph: torch.cuda.CUDAGraph
    x: Tensor
    y: Tensor


_lock = threading.Lock()
_calls: dict[Hashable, int] = {}
_graphs: dict[Hashable, _Graph] = {}
# Of each GPU, the stream whose launches are captured, and the memory that all graphs share.
_pools: dict[int, tuple[int, Any]] = {}


def are_asked_for(x: Tensor) -> bool:
    """Return whether launches for a map like x are to be captured, and may be.

    Raises:
        ValueError: The environment variable is neither 0 nor 1.
    """
    asked = os.environ.get(_ENVIRONMENT, "0")
    if asked not in ("0", "1"):
        raise ValueError(f"the environment variable {_ENVIRONMENT} is {asked!r}, expected 0 or 1")
    if asked == "0" or not x.is_cuda or torch.cuda.is_current_stream_capturing():
        return False
    return x.numel() * x.element_size() <= _LARGEST_PART * _memory_of(x.device)


@cache
def _memory_of(device: torch.device) -> int:
    return torch.cuda.get_device_properties(device).total_memory


def replayed(x: Tensor, weights: T, compute: Callable[[Tensor, T], Tensor], kind: Hashable) -> Tensor:
    """Return ``compute(x, weights)``; from the fourth call for a kind on, by a graph.

    Args:
        x: On a GPU.
        weights: Whatever ``compute`` takes.
        compute: Launches the same kernels with the same addresses of weights for all calls of a kind, and waits for
            nothing.
        kind: All that decides what it launches, but for device, size and dtype of x, and how torch multiplies.
    """
    with torch.cuda.device(x.device):
        stream, index = torch.cuda.current_stream().cuda_stream, x.device.index
        key = (index, x.shape, x.stride(), x.dtype, kind, _products())
        with _lock:
            # Graphs that run at a time, on several streams, would share memory: that of this pool, and cuBLAS's.
            if index not in _pools:
                _pools[index] = stream, torch.cuda.graph_pool_handle()
            if _pools[index][0] != stream:
                return compute(x, weights)
            calls = _calls.pop(key, 0)
            _remember(_calls, key, calls + 1)
            if calls >= _CALLS_BEFORE:
                # Of threads that share a stream, one at a time fills a graph's x and reads its y.
                return _replay(key, x, weights, compute)
        return compute(x, weights)


def _products() -> tuple[Any, ...]:
    """Return how torch multiplies matrices."""
    settings = torch.backends.cuda.matmul
    narrow = settings.allow_bf16_reduced_precision_reduction, settings.allow_fp16_reduced_precision_reduction
    return settings.fp32_precision, *narrow


def _replay(key: Hashable, x: Tensor, weights: T, compute: Callable[[Tensor, T], Tensor]) -> Tensor:
    captured = _graphs.pop(key, None) or _capture(x, weights, compute)
    _remember(_graphs, key, captured)
    captured.x.copy_(x)
    captured.graph.replay()
    return captured.y.clone()


def _capture(x: Tensor, weights: T, compute: Callable[[Tensor, T], Tensor]) -> _Graph:
    _, pool = _pools[x.device.index]
    with torch.inference_mode(False), torch.no_grad():  # else it could be written to in that mode alone
        x, graph = torch.empty_like(x).copy_(x), torch.cuda.CUDAGraph()
    # Other threads, as that of a DataLoader which pins memory, may go on meanwhile.
    with torch.cuda.graph(graph, pool=pool, capture_error_mode="thread_local"):
        y = compute(x, weights)
    return _Graph(graph, x, y)


def _remember(kept: dict[Hashable, Any], key: Hashable, value: Any) -> None:
    """Keep a value under a key that is new, or was taken out, and forget the one that was used longest ago."""
    kept[key] = value
    if len(kept) > _MOST_KEPT:
        del kept[next(iter(kept))]
