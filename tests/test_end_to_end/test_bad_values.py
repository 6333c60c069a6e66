"""A bad value in a config: one sentence, the last line of the error, before anything is trained."""

import pytest

from .runs import MMDET, script

pytestmark = pytest.mark.end_to_end


def test_training_says_what_is_wrong(tmp_path):
    run = script("train", MMDET, tmp_path, "--cfg-options", "model.neck.in_channels=[256,512,1024,2048]")
    assert run.status != 0
    assert run.error == (
        "ValueError: model.neck.in_channels is [256, 512, 1024, 2048], but should be [8, 16, 32, 48], since this "
        "MSVMamba gives maps of [8, 16, 32, 48] channels"
    )
    assert "Epoch(train)" not in run.output
