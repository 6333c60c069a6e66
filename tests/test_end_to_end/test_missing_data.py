"""A data root that is not there: which path, and how to get the data, before anything is trained or tested."""

from .runs import TASKS, mim

MMDET, MMSEG, _ = TASKS


def test_training_names_the_missing_path(tmp_path):
    nowhere, work_dir = tmp_path / "nowhere", tmp_path / "run"
    run = mim("train", MMDET, work_dir, "--cfg-options", f"val_dataloader.dataset.data_root={nowhere}")
    assert run.status != 0
    assert f"FileNotFoundError: ValLoop: the data set lacks {nowhere} " in run.output
    assert "git checkout -- data" in run.output
    assert "Epoch(train)" not in run.output
    assert not list(work_dir.glob("*.pth"))


def test_testing_names_the_missing_path(tmp_path):
    # mmseg, whose test script builds MMEngine's own runner whatever the config says.
    nowhere = f"test_dataloader.dataset.data_root={tmp_path / 'nowhere'}"
    run = mim("test", MMSEG, tmp_path / "run", "--checkpoint", "none.pth", "--cfg-options", nowhere)
    assert run.status != 0
    assert f"FileNotFoundError: TestLoop: the data set lacks {tmp_path / 'nowhere'} " in run.output
    assert "git checkout -- data" in run.output
