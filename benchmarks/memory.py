"""Peak memory of a forward and backward pass; runs in a process of its own, which nothing else has used memory in."""

import ctypes
import multiprocessing
import re
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import torch
from cases import Case, Scan, output_gradient
from measure import results
from peers import Peer, peers

_CLEAR_REFS, _STATUS = Path("/proc/self/clear_refs"), Path("/proc/self/status")


def child_process() -> ProcessPoolExecutor:
    """Start a fresh process; a forked one would have this one's memory."""
    return ProcessPoolExecutor(1, multiprocessing.get_context("spawn"))


def extra_memory(name: str, case: Case, device: str) -> float:
    """Return the peak of all that is not input or dy (y, gradients, what is kept and scratch), in multiples of x.

    Raises:
        OSError: The system does not tell (anything but Linux, some containers).
    """
    where = torch.device(device)
    peer = next(peer for peer in peers(where) if peer.name == name)
    _extra_bytes(peer, case.tiny().scan(where), where)  # what a first call loads and starts
    scan = case.scan(where)
    x = scan.tensors[0]
    return _extra_bytes(peer, scan, where) / (x.numel() * x.element_size())


def _extra_bytes(peer: Peer, scan: Scan, device: torch.device) -> int:
    dy = output_gradient(scan)
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        results(peer, scan, dy)
        return torch.cuda.max_memory_allocated(device) - before
    ctypes.CDLL(None).malloc_trim(0)  # what was freed goes back to the system, so that it counts when used again
    _CLEAR_REFS.write_text("5")  # the peak is now what is resident
    before = _resident("VmRSS")
    results(peer, scan, dy)
    return _resident("VmHWM") - before


def _resident(field: str) -> int:
    return int(re.search(rf"{field}:\s+(\d+) kB", _STATUS.read_text()).group(1)) * 1024
