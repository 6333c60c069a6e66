"""Fixtures that several files share."""

import pytest

from mmmsv.kernels import whole_block

from ..test_kernels.block_inputs import on_any_processor


@pytest.fixture
def taken(monkeypatch):
    """What blocks in one call have computed, call by call, on any processor."""
    with on_any_processor():
        yield record(monkeypatch, "compute")


@pytest.fixture
def downsampled(monkeypatch):
    """What layers that lower the resolution have computed in one call, on any processor."""
    with on_any_processor():
        yield record(monkeypatch, "compute_downsampling")


def record(monkeypatch, name):
    results, compute = [], getattr(whole_block, name)

    def recorded(*arguments):
        y = compute(*arguments)
        if y is not None:
            results.append(y)
        return y

    monkeypatch.setattr(whole_block, name, recorded)
    return results
