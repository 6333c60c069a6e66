"""What is particular to backend torch: its chunks."""

import pytest

from mmmsv.kernels.backends.torch import scan as chunked

from .scan_inputs import assert_near, run, scan_inputs


@pytest.mark.parametrize("elements", [1, 2000, 10_000])
@pytest.mark.parametrize("length", [33, 34, 700])
def test_chunk_borders(monkeypatch, elements, length):
    """The state crosses from chunk to chunk, forwards and backwards, wherever the borders fall."""
    monkeypatch.setattr(chunked, "_ELEMENTS", elements)
    inputs = scan_inputs(length=length, state=3)
    for ours, theirs in zip(run("torch", inputs), run("reference", inputs), strict=True):
        assert_near(ours, theirs, 1e-12)
