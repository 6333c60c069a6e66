"""Fixtures that several files share."""

import pytest

from mmmsv.kernels import whole_block

from ..test_kernels.block_inputs import on_any_processor


@pytest.fixture
def taken(monkeypatch):
    """What blocks in one call have computed, call by call, on any processor."""
    results, compute = [], whole_block.compute

    def recorded(*arguments):
        y = compute(*arguments)
        if y is not None:
            results.append(y)
        return y

    monkeypatch.setattr(whole_block, "compute", recorded)
    with on_any_processor():
        yield results
