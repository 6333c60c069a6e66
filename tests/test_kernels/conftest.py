"""Without a GPU the Triton kernels run in Triton's interpreter, in this process and in none that a test starts.

With ``MMMSV_SIMULATE=1`` they run in the simulator (:mod:`tests.simulator`), whether there is a GPU or not.
"""

import contextlib
import dataclasses
import functools
import importlib
from collections import Counter
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from mmmsv.kernels import BACKENDS, scan
from mmmsv.kernels.arguments import choose_chunk
from mmmsv.kernels.backends.cpu import library
from mmmsv.kernels.backends.triton import scan as triton_scan

from ..simulator import SIMULATED


def _scan_by_rows(self, inputs):
    """``tl.associative_scan`` in the interpreter, its combine function called once for each row.

    Triton's own calls it once for each element, and takes minutes where this takes seconds.
    """
    rows = [np.moveaxis(tensor.handle.data, self.axis, 0) for tensor in inputs]
    done = [tuple(row[0] for row in rows)]
    for i in range(1, len(rows[0])):
        operands = (*done[-1], *(row[i] for row in rows))
        dtypes = [tensor.dtype for tensor in inputs] * 2
        joined = self.combine_fn.fn(
            *(self.to_tensor(value, dtype) for value, dtype in zip(operands, dtypes, strict=True))
        )
        done.append(tuple(tensor.handle.data for tensor in (joined if isinstance(joined, tuple) else (joined,))))
    outputs = (np.moveaxis(np.stack(column), 0, self.axis) for column in zip(*done, strict=True))
    return [self.to_tensor(values, tensor.dtype) for values, tensor in zip(outputs, inputs, strict=True)]


def _patched_once(patch_lang):
    """Let the interpreter replace what ``tl`` holds once for each function, and not at each of its calls."""

    @functools.cache
    def patch_lang_once(function):
        patch_lang(function)
        # Triton's own gives int() an array of one number, which NumPy refuses from 2.4 on.
        triton.language.core.tensor.__index__ = lambda self: self.handle.data.item()
        return SimpleNamespace(restore=lambda: None)

    return patch_lang_once


class _GuardedScratch:
    """Lend what is asked for, with a guard behind it."""

    @contextlib.contextmanager
    def lend(self, size):
        memory = torch.full((size + 4096,), 0xA5, dtype=torch.uint8)
        yield memory.data_ptr()
        assert (memory[size:] == 0xA5).all(), "an op wrote behind its scratch"


@pytest.fixture(scope="module")
def guarded_scratch():
    """See that no op of the C++ library needs more scratch than it says."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(library, "scratch", _GuardedScratch())
        yield


@pytest.fixture
def set_threads():
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


if SIMULATED and triton_scan.why_no_triton() is None:
    from ..simulator import driver

    driver.install()
    BACKENDS["triton"] = dataclasses.replace(BACKENDS["triton"], why_not=lambda device: None)
    # As often as on a GPU.
    scan.choose_chunk = lambda device, state: choose_chunk(torch.device("cuda"), state)

    @pytest.hookimpl(hookwrapper=True)
    def pytest_runtest_call(item):
        """Note which kernels a test launches."""
        before = driver.launches.copy()
        yield
        item.user_properties.append(("launches", dict(driver.launches - before)))  # which xdist can send

    def pytest_terminal_summary(terminalreporter):
        """Print how often each kernel was launched."""
        properties = [pair for report in terminalreporter.getreports("") for pair in report.user_properties]
        counts = sum((Counter(count) for title, count in properties if title == "launches"), Counter())
        terminalreporter.section("launches in the simulator")
        for name, count in sorted(counts.items()):
            terminalreporter.write_line(f"{name:28}{count:>8}")

elif triton_scan.why_no_triton() is None:
    import triton.experimental.gluon  # which Triton itself imports at the first launch
    from triton.runtime import interpreter

    interpreter.ScanOps.generic_scan = _scan_by_rows
    interpreter._patch_lang = _patched_once(interpreter._patch_lang)
    # Computed for each sum and product of integers, and looked at by nothing unless Triton runs in its debug mode.
    options = interpreter.interpreter_builder.options
    interpreter.interpreter_builder.options = dataclasses.replace(options, sanitize_overflow=False)
    with pytest.MonkeyPatch.context() as patch:
        if not torch.cuda.is_available():
            # Read where a kernel is defined: Triton's own, as tl.cdiv, are defined already, by whatever imported it.
            patch.setenv("TRITON_INTERPRET", "1")
            importlib.reload(triton.language.standard)
            importlib.reload(triton.language)
        from mmmsv.kernels.backends.triton import (  # noqa: F401
            conv_kernels,
            gate_kernels,
            merge_kernels,
            norm_kernels,
            scan_backward,
            scan_forward,
            spans,
        )
