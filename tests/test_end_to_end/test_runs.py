"""Train, test and resume through mim, in mmdet, mmseg and mmpretrain, on the bundled photographs."""

import json
import math
import shutil

import torch

from .runs import mim


def test_losses_are_finite_and_fall(trained):
    losses = [{key: row[key] for key in row if "loss" in key} for row in trained.log if "loss" in row]
    assert len(losses) >= 8
    assert all(math.isfinite(value) for row in losses for value in row.values())
    if trained.task.package == "mmdet":  # 0.0 would mean that it saw no boxes
        assert all(row["loss_bbox"] > 0 and row["loss_mask"] > 0 for row in losses)
    half = len(losses) // 2
    first, second = (sum(row["loss"] for row in part) / len(part) for part in (losses[:half], losses[half:]))
    assert second < first


def test_checkpoint_reloads_to_the_same_metrics(trained, tmp_path):
    run = mim("test", trained.task, tmp_path, "--checkpoint", trained.final)
    assert run.status == 0, run.output
    (report,) = tmp_path.glob("*/*.json")
    tested, validated = json.loads(report.read_text()), trained.log[-1]
    assert {name: tested[name] for name in trained.task.metrics} == {
        name: validated[name] for name in trained.task.metrics
    }
    # Were they all 0, their equality would say little.
    assert max(tested[name] for name in trained.task.metrics) > 0


def test_resumed_run_ends_with_the_weights_of_an_unbroken_one(trained, tmp_path):
    # What a run that was stopped half-way leaves behind.
    interrupted = shutil.copy(trained.halfway, tmp_path)
    (tmp_path / "last_checkpoint").write_text(str(interrupted))
    run = mim("train", trained.task, tmp_path, "--resume")
    assert run.status == 0, run.output
    assert f"resumed epoch: {trained.halfway.stem.removeprefix('epoch_')}" in run.output

    halfway, unbroken, resumed = (
        torch.load(path, weights_only=False)["state_dict"]
        for path in (trained.halfway, trained.final, tmp_path / trained.final.name)
    )
    assert unbroken.keys() == resumed.keys()
    assert [name for name in unbroken if not torch.equal(unbroken[name], resumed[name])] == []
    assert any(not torch.equal(halfway[name], unbroken[name]) for name in unbroken)


def test_a_checkpoint_of_another_model_is_refused(trained, tmp_path):
    other = f"{trained.task.classes}=7"
    run = mim("test", trained.task, tmp_path, "--checkpoint", trained.final, "--cfg-options", other)
    assert run.status != 0
    assert "ValueError: this checkpoint does not fit" in run.output
    assert "size mismatch for" in run.output
    assert "nothing was loaded" in run.output
