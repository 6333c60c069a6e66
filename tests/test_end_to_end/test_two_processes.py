"""Two processes train as one with twice the batch does, on processors, through mim's own launcher."""

import json
import shutil
from pathlib import Path

import pytest
import torch

from .runs import FOLDER, MMDET, mim, script

pytestmark = pytest.mark.end_to_end

CONFIG = FOLDER / "small/two_processes.py"
PAIR = ("--launcher", "pytorch", "--gpus", "2")


@pytest.fixture(scope="module")
def pair(tmp_path_factory) -> Path:
    """The folder of a run of two processes, with a batch of 2 each."""
    work_dir = tmp_path_factory.mktemp("pair")
    run = mim("train", MMDET, work_dir, *PAIR, config=CONFIG)
    assert run.status == 0, run.output
    return work_dir


def _losses(work_dir: Path, processes: int) -> torch.Tensor:
    """All losses of all iterations, their mean over the processes."""
    files = [work_dir / f"losses_{rank}.json" for rank in range(processes)]
    return torch.tensor([[list(row.values()) for row in json.loads(file.read_text())] for file in files]).mean(0)


def _weights(path: Path) -> dict[str, torch.Tensor]:
    return torch.load(path, weights_only=False)["state_dict"]


def test_loss_curve_is_that_of_one_process_with_twice_the_batch(pair, tmp_path):
    run = script("train", MMDET, tmp_path, "--cfg-options", "train_dataloader.batch_size=4", config=CONFIG)
    assert run.status == 0, run.output
    two, one = _losses(pair, 2), _losses(tmp_path, 1)
    assert len(two) == 8
    assert one[-1, 0] < one[0, 0] / 2
    # Not 0, because sums are made in another order: each process over its own pictures. Measured: 3e-7.
    torch.testing.assert_close(two, one, rtol=1e-5, atol=1e-7)
    ours, theirs = _weights(pair / "epoch_4.pth"), _weights(tmp_path / "epoch_4.pth")
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-4)
    # The processes saw different pictures.
    first, second = (json.loads((pair / f"losses_{rank}.json").read_text())[0]["loss"] for rank in (0, 1))
    assert abs(first - second) > 1e-2


def test_resumed_pair_ends_with_the_weights_of_an_unbroken_one(pair, tmp_path):
    halfway = shutil.copy(pair / "epoch_2.pth", tmp_path)
    (tmp_path / "last_checkpoint").write_text("gone.pth")
    run = mim("train", MMDET, tmp_path, *PAIR, "--resume", config=CONFIG)
    assert run.status == 0, run.output
    assert f"the newest whole checkpoint is {halfway}" in run.output
    unbroken, resumed = _weights(pair / "epoch_4.pth"), _weights(tmp_path / "epoch_4.pth")
    assert [name for name in unbroken if not torch.equal(unbroken[name], resumed[name])] == []
