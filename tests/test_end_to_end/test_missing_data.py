"""A data root that is not there: which path, and how to get the data, before anything is trained or tested."""

import pytest

from .runs import MMDET, MMPRETRAIN, MMSEG, script

pytestmark = pytest.mark.end_to_end


@pytest.mark.parametrize(
    ("task", "loop"),
    [(MMDET, "Val"), (MMSEG, "Train"), (MMPRETRAIN, "Train")],
    ids=["mmdet-val", "mmseg-train", "mmpretrain-train"],
)
def test_training_names_the_missing_path(task, loop, tmp_path):
    nowhere, work_dir = tmp_path / "nowhere", tmp_path / "run"
    data = f"{loop.lower()}_dataloader.dataset.data_root={nowhere}"
    run = script("train", task, work_dir, "--cfg-options", data)
    assert run.status != 0
    looked = {"Train": "EpochBasedTrainLoop", "Val": "ValLoop"}[loop]
    assert f"FileNotFoundError: {looked}: the data set lacks {nowhere} " in run.output
    assert "git checkout -- data" in run.output
    assert "Epoch(train)" not in run.output
    assert not list(work_dir.glob("*.pth"))


def test_testing_names_the_missing_path(tmp_path):
    # mmseg, whose test script builds MMEngine's own runner whatever the config says.
    nowhere = f"test_dataloader.dataset.data_root={tmp_path / 'nowhere'}"
    run = script("test", MMSEG, tmp_path / "run", "none.pth", "--cfg-options", nowhere)
    assert run.status != 0
    assert f"FileNotFoundError: TestLoop: the data set lacks {tmp_path / 'nowhere'} " in run.output
    assert "git checkout -- data" in run.output
