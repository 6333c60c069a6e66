"""How the maps and the scratch of the library get their memory.

The system hands out fresh memory page by page, at about a microsecond for 4 KiB, which is a tenth of the time of a
model on a large image.
"""

import ctypes
import functools
import mmap
import os
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

_LARGE = 4 << 20  # bytes; what is smaller comes from malloc, which keeps it
_PAGE = mmap.PAGESIZE
_MADV_DONTNEED, _MADV_FREE, _MADV_HUGEPAGE = 4, 8, 14  # of Linux
# DEFAULT_MMAP_THRESHOLD_MAX of glibc, less what malloc adds to a block.
_LARGEST_THAT_COUNTS = (32 << 20) - (64 << 10)


def _fresh(size: int) -> Tensor:
    return torch.empty(size, dtype=torch.uint8, device="cpu")


def let_malloc_keep_memory() -> None:
    """Free one block of the largest size from which glibc's malloc learns how large the blocks of a program are.

    Until it has seen one, it hands what is freed back to the system after each operation on a map and takes it page by
    page again for the next: a fifth of the time of a forward pass on one image. From then on it keeps up to twice as
    much as this block, whose memory nothing touches. To other systems the block means nothing.
    """
    _fresh(_LARGEST_THAT_COUNTS)


def in_huge_pages(tensor: Tensor) -> Tensor:
    """Return an uninitialised tensor itself, a large one in huge pages where the system has any to give.

    First touching 50 MB in pages of 4 KiB takes longer than scanning them.
    """
    if tensor.numel() * tensor.element_size() > _LARGE:
        _advise(tensor, _MADV_HUGEPAGE)
    return tensor


class Scratch:
    """Lend memory for the time of a call, and keep a large piece of it for the next one.

    Between two calls the system may take the pages of that piece, and does where it is short of memory; those that it
    has not taken are used again as they are. On systems that cannot be told so, nothing is kept. One call at a time has
    it; one in another thread gets memory of its own.
    """

    def __init__(self) -> None:
        self._kept = _fresh(0)
        self._lock = threading.Lock()

    @contextmanager
    def lend(self, size: int) -> Iterator[int]:
        """Lend ``size`` bytes, uninitialised; the value of the ``with`` statement is their address."""
        lock = self._lock
        if size <= _LARGE or not lock.acquire(blocking=False):
            memory = _fresh(size)
            yield memory.data_ptr()
            return
        try:
            if self._kept.numel() < size:
                self._kept = _fresh(0)  # first, so that there are never both
                self._kept = _fresh(size)
            yield self._kept.data_ptr()
        finally:
            if not _advise(self._kept[:size], _MADV_FREE):
                self._kept = _fresh(0)
            lock.release()

    def empty(self) -> None:
        """Give back what is kept, unless a call in another thread has it."""
        if self._lock.acquire(blocking=False):
            _advise(self._kept, _MADV_DONTNEED)  # or malloc might keep it
            self._kept = _fresh(0)
            self._lock.release()

    def unlock(self) -> None:
        """Forget that a call has it: in a process that was forked off meanwhile, there is no such call."""
        self._lock = threading.Lock()


scratch = Scratch()
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=scratch.unlock)


def empty_cache() -> None:
    """Give back to the system the memory that the C++ library keeps for the scratch of its next call.

    There is no need to: the system takes it where it is short of memory. Until then it counts as memory of this
    process, which matters to those who measure it. What other threads compute is not disturbed.
    """
    scratch.empty()


def _advise(memory: Tensor, advice: int) -> bool:
    """Tell the system how the whole pages of a tensor are used; return whether it has understood."""
    madvise = _madvise()
    if madvise is None:
        return False
    begin = -(-memory.data_ptr() // _PAGE) * _PAGE
    end = (memory.data_ptr() + memory.numel() * memory.element_size()) // _PAGE * _PAGE
    return end <= begin or madvise(begin, end - begin, advice) == 0


@functools.cache
def _madvise() -> Callable[[int, int, int], int] | None:
    """Return the C library's ``madvise``; None where its advice is not that of Linux."""
    if sys.platform != "linux":
        return None
    function = ctypes.CDLL(None).madvise
    function.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)
    return function
