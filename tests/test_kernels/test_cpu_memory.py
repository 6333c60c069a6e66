"""The memory that scratch of the C++ library gets, and keeps."""

import ctypes
import mmap
import threading
from pathlib import Path

import pytest
import torch

from mmmsv.kernels import empty_cache
from mmmsv.kernels.backends.cpu import library, memory
from mmmsv.kernels.backends.cpu.linear import product
from mmmsv.kernels.backends.cpu.memory import Scratch

LARGE = 16 << 20

is_kept = pytest.mark.skipif(
    memory._madvise() is None, reason="this system cannot be told that it may take memory back"
)


@is_kept
def test_large_memory_is_kept():
    scratch = Scratch()
    with scratch.lend(LARGE) as first:
        pass
    with scratch.lend(LARGE // 2) as second:
        assert second == first
    assert scratch._kept.numel() == LARGE
    with scratch.lend(2 * LARGE):
        assert scratch._kept.numel() == 2 * LARGE
    scratch.empty()
    assert scratch._kept.numel() == 0


def test_small_memory_is_not():
    scratch = Scratch()
    with scratch.lend(1000):
        pass
    assert scratch._kept.numel() == 0


@is_kept
def test_kept_memory_is_lent_to_one_call_at_a_time():
    scratch = Scratch()
    with scratch.lend(LARGE) as first:
        with scratch.lend(LARGE) as second:
            assert abs(first - second) >= LARGE
        scratch.empty()
        assert scratch._kept.data_ptr() == first
    with scratch.lend(LARGE) as third:
        assert third == first


@is_kept
def test_a_call_that_fails_gives_it_back():
    scratch = Scratch()
    with pytest.raises(ValueError, match="wrong"), scratch.lend(LARGE) as first:
        raise ValueError("wrong")
    with scratch.lend(LARGE) as second:
        assert second == first


@pytest.mark.parametrize("answer", [None, lambda *_: -1], ids=["no such call", "the call fails"])
def test_nothing_is_kept_where_the_system_cannot_take_it_back(answer, monkeypatch):
    monkeypatch.setattr(memory, "_madvise", lambda: answer)
    scratch = Scratch()
    with scratch.lend(LARGE):
        pass
    assert scratch._kept.numel() == 0


@is_kept
def test_emptying_gives_memory_back_to_the_system():
    """At once, also where malloc would keep it: this is a size that it has learnt to keep."""
    scratch, pages = Scratch(), LARGE // mmap.PAGESIZE
    with scratch.lend(LARGE) as address:
        ctypes.memset(address, 1, LARGE)
    before = resident_pages()
    scratch.empty()
    assert before - resident_pages() > 0.9 * pages


@is_kept
def test_a_process_that_was_forked_off_meanwhile_lends_it():
    scratch = Scratch()
    with scratch.lend(LARGE):
        scratch.unlock()  # as in the child
        with scratch.lend(LARGE) as second:
            assert second == scratch._kept.data_ptr()


@is_kept
@pytest.mark.skipif(library.why_not(torch.device("cpu")) is not None, reason="there is no C++ library here")
def test_threads_do_not_disturb_each_other():
    """Whoever finds the memory lent takes other memory, and what was left in it reaches no result."""
    torch.manual_seed(0)
    weight = torch.randn(1040, 1024)  # more than 4 MiB, and so are its panels, where there are many rows
    maps = [torch.randn(1, 17, 17, 1024) for _ in range(2)]
    expected = [product(x, weight, None) for x in maps]
    found: dict[int, list[bool]] = {0: [], 1: []}

    def compute(index):
        for _ in range(5):
            found[index].append(torch.equal(product(maps[index], weight, None), expected[index]))

    threads = [threading.Thread(target=compute, args=(index,)) for index in found]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == {0: [True] * 5, 1: [True] * 5}
    assert memory.scratch._kept.numel() > 0
    empty_cache()
    assert memory.scratch._kept.numel() == 0


def resident_pages():
    return int(Path("/proc/self/statm").read_text().split()[1])
