"""Without a GPU the Triton kernels run through Triton's interpreter, which is to be asked for before their import."""

import os

import numpy as np
import torch

if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")


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


if os.environ.get("TRITON_INTERPRET") == "1":
    from mmmsv.kernels.backends.triton import scan as triton_scan

    if triton_scan.why_no_triton() is None:
        from triton.runtime.interpreter import ScanOps

        ScanOps.generic_scan = _scan_by_rows


def pytest_terminal_summary(terminalreporter):
    """Print what the models of the configs cost, where that was counted."""
    reports = terminalreporter.getreports("passed")
    rows = [row for report in reports for title, row in report.user_properties if title == "zoo"]
    if rows:
        terminalreporter.section("parameters (M) and GMACs, in the published convention")
        for config, parameters, macs in sorted(rows):
            terminalreporter.write_line(f"{config:48}{parameters:>10}{macs:>10}")
