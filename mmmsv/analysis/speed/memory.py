"""Measure the peak memory of a call beyond what is in use before it, and what autograd saves."""

import ctypes
import multiprocessing
import re
from collections.abc import Callable
from concurrent.futures import Executor, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import TypeVar

import torch
from torch import Tensor, nn

from mmmsv.kernels import empty_cache

from .timing import FAILURES, explain

T = TypeVar("T")
_CLEAR_REFS, _STATUS = Path("/proc/self/clear_refs"), Path("/proc/self/status")


def child_process() -> ProcessPoolExecutor:
    """Start a fresh process; a forked one would have this one's memory."""
    return ProcessPoolExecutor(1, multiprocessing.get_context("spawn"))


def measure_in(child: Executor, measure: Callable[..., T], *arguments: object) -> T | str:
    """Return what ``measure`` returns in a child process, or why it cannot, in one clause."""
    try:
        return child.submit(measure, *arguments).result()
    except BrokenProcessPool:
        return "the process that measured it was killed, as a rule for want of memory"
    except OSError as error:
        return f"the system does not report it: {explain(error)}"
    except FAILURES as error:
        return explain(error)


def rise(call: Callable[[], object], device: torch.device) -> int:
    """Return how many bytes more than before are in use at the peak of a call.

    On the CPU the process should have done little else, and have made the same call once: what a first call loads and
    starts would count.

    Raises:
        OSError: The system does not report it (anything but Linux, some containers).
    """
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        call()
        torch.cuda.synchronize(device)
        return torch.cuda.max_memory_allocated(device) - before
    empty_cache()
    if trim := getattr(ctypes.CDLL(None), "malloc_trim", None):  # of glibc
        trim(0)  # what was freed goes back to the system, so that it counts when used again
    _CLEAR_REFS.write_text("5")  # the peak is now what is resident
    before = _resident("VmRSS")
    call()
    return _resident("VmHWM") - before


def kept_for_backward(model: nn.Module, x: Tensor) -> int:
    """Return the bytes of all tensors that autograd saves of ``model(x)``, each memory once, without weights.

    Works on fake tensors, too.
    """
    weights = {parameter.untyped_storage()._cdata for parameter in model.parameters()}
    kept = {}

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage._cdata not in weights:
            kept[storage._cdata] = storage  # the storage itself, so that its place is not given to another
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        model(x)
    return sum(storage.nbytes() for storage in kept.values())


def _resident(field: str) -> int:
    if not (match := re.search(rf"{field}:\s+(\d+) kB", _STATUS.read_text())):
        raise OSError(f"{_STATUS} has no {field}")
    return int(match[1]) * 1024
