"""Captures launches in CUDA graphs, and replays them: a graph is one launch, whatever it holds.

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

# A graph keeps the memory of what lies between its launches, some ten maps like x, which all graphs of a stream share:
# x may have so much of the GPU's memory.
_LARGEST_PART = 1 / 512
_MOST_KEPT = 64
# A size that comes once or twice, as those of a detector's images, is not worth a capture, which takes as long as ten.
_CALLS_BEFORE = 3


_ENVIRONMENT = "MMMSV_CUDA_GRAPHS"
T = TypeVar("T")


class _Graph(NamedTuple):
    graph: torch.cuda.CUDAGraph
    x: Tensor
    y: Tensor


_lock = threading.Lock()
_calls: dict[Hashable, int] = {}
_graphs: dict[Hashable, _Graph] = {}
_pools: dict[tuple[int, int], Any] = {}


def pays_off(x: Tensor) -> bool:
    """Return whether launches for a map like x take longer than the GPU, and may be captured."""
    if not x.is_cuda or x.numel() * x.element_size() > _LARGEST_PART * _memory_of(x.device):
        return False
    return os.environ.get(_ENVIRONMENT) != "0" and not torch.cuda.is_current_stream_capturing()


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
        kind: All that decides what it launches, but for device, stream, size and dtype of x, and how torch multiplies.
    """
    with torch.cuda.device(x.device):
        stream = torch.cuda.current_stream()
        key = (x.device.index, stream.cuda_stream, x.shape, x.stride(), x.dtype, kind, _products())
        with _lock:
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
    return settings.fp32_precision, torch.backends.fp32_precision, *narrow


def _replay(key: Hashable, x: Tensor, weights: T, compute: Callable[[Tensor, T], Tensor]) -> Tensor:
    captured = _graphs.pop(key, None) or _capture(x, weights, compute)
    _remember(_graphs, key, captured)
    captured.x.copy_(x)
    captured.graph.replay()
    return captured.y.clone()


def _capture(x: Tensor, weights: T, compute: Callable[[Tensor, T], Tensor]) -> _Graph:
    stream = x.device.index, torch.cuda.current_stream().cuda_stream
    if stream not in _pools:
        _pools[stream] = torch.cuda.graph_pool_handle()
    with torch.inference_mode(False), torch.no_grad():  # else it could be written to in that mode alone
        x, graph = torch.empty_like(x).copy_(x), torch.cuda.CUDAGraph()
    # Other threads, as that of a DataLoader which pins memory, may go on meanwhile.
    with torch.cuda.graph(graph, pool=_pools[stream], capture_error_mode="thread_local"):
        y = compute(x, weights)
    return _Graph(graph, x, y)


def _remember(kept: dict[Hashable, Any], key: Hashable, value: Any) -> None:
    """Keep a value under a key that is new, or was taken out, and forget the one that was used longest ago."""
    kept[key] = value
    if len(kept) > _MOST_KEPT:
        del kept[next(iter(kept))]
