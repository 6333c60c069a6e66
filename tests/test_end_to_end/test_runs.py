"""Train, test and resume through mim, in mmdet, mmseg and mmpretrain, on the bundled photographs."""

import json
import math
import re
import signal

import pytest
import torch

from .runs import MMDET, MMPRETRAIN, mim, script

pytestmark = pytest.mark.end_to_end


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
    if trained.task is MMDET:  # once: mim imports everything three times
        run = mim("test", trained.task, tmp_path, "--checkpoint", trained.final)
    else:
        run = script("test", trained.task, tmp_path, trained.final)
    assert run.status == 0, run.output
    (report,) = tmp_path.glob("*/*.json")
    tested, validated = json.loads(report.read_text()), trained.log[-1]
    assert {name: tested[name] for name in trained.task.metrics} == {
        name: validated[name] for name in trained.task.metrics
    }
    # Were they all 0, their equality would say little.
    assert max(tested[name] for name in trained.task.metrics) > 0


def test_killed_run_ends_with_the_weights_of_an_unbroken_one(trained, tmp_path):
    """SIGKILL in the middle of a checkpoint, of which one is kept; in mmdet of an epoch, too. ``--resume`` goes on."""
    accidents = [{"type": "KilledWhileSaving", "epoch": 3, "size": 100_000}]
    if trained.task.package == "mmdet":
        accidents = [{"type": "KilledInEpoch", "iteration": 3}, *accidents]
    config, work_dir = tmp_path / "killed.py", tmp_path / "run"
    for accident, resume in zip([*accidents, None], [[], *[["--resume"]] * len(accidents)], strict=True):
        config.write_text(
            f"_base_ = {str(trained.task.config)!r}\n"
            "custom_imports = dict(imports=['accidents'])\n"
            f"custom_hooks = [*_base_.custom_hooks, *{[accident] if accident else []}]\n"
            "default_hooks = dict(checkpoint=dict(interval=1, max_keep_ckpts=1))\n"
        )
        run = script("train", trained.task, work_dir, *resume, config=config)
        if accident:
            assert run.status == -signal.SIGKILL
            torch.load((work_dir / "last_checkpoint").read_text(), weights_only=False)
    assert run.status == 0, run.output
    assert "resumed epoch: 2" in run.output
    # Torn at first, cleared away when the run went on.
    assert [path.name for path in work_dir.glob("*.pth*")] == [trained.final.name]

    halfway, unbroken, resumed = (
        torch.load(path, weights_only=False)["state_dict"]
        for path in (trained.halfway, trained.final, work_dir / trained.final.name)
    )
    assert unbroken.keys() == resumed.keys()
    assert [name for name in unbroken if not torch.equal(unbroken[name], resumed[name])] == []
    assert any(not torch.equal(halfway[name], unbroken[name]) for name in unbroken)


def test_a_checkpoint_of_another_model_is_refused(trained, tmp_path):
    other = f"{trained.task.classes}=7"
    run = script("test", trained.task, tmp_path, trained.final, "--cfg-options", other)
    assert run.status != 0
    assert "ValueError: this checkpoint does not fit" in run.output
    assert "of another shape: " in run.output
    assert "nothing was loaded" in run.output


@pytest.mark.skipif(torch.__version__ < (2, 2), reason="torch 2.1 does not compile what AdamW does on a CPU")
@pytest.mark.parametrize("trained", [MMPRETRAIN], ids=["mmpretrain"], indirect=True)
def test_compiled_by_a_line_of_the_config(trained, tmp_path):
    """``compile`` is MMEngine's; backend ``aot_eager`` has graphs and backward passes as ``True`` has, and no C++."""
    config, work_dir = tmp_path / "compiled.py", tmp_path / "run"
    config.write_text(
        f"_base_ = {str(trained.task.config)!r}\n"
        "compile = dict(backend='aot_eager')\n"
        "train_cfg = dict(max_epochs=1, val_interval=1)\n"
        "custom_imports = dict(imports=['compilation'])\n"
        "custom_hooks = [*_base_.custom_hooks, dict(type='TellsWhatWasCompiled')]\n"
    )
    run = script("train", trained.task, work_dir, config=config)
    assert run.status == 0, run.output
    # Not left eager: the backbone alone makes some hundred calls.
    assert int(re.search(r"compiled: \d+ graphs, (\d+) calls", run.output)[1]) > 300
    (scalars,) = work_dir.glob("*/vis_data/scalars.json")
    compiled, eager = (
        [row["loss"] for row in rows if "loss" in row and row["epoch"] == 1]
        for rows in (map(json.loads, scalars.read_text().splitlines()), trained.log)
    )
    assert len(compiled) >= 4
    assert compiled == pytest.approx(eager, rel=1e-4)
