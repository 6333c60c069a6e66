"""``mmmsv.CheckpointHook`` without a model: whatever it is told to save, and wherever it is stopped."""

import os
import time
from pathlib import Path
from types import SimpleNamespace
from unittest.mock import Mock

import mmengine
import pytest
import torch
from mmengine.fileio import LocalBackend, register_backend
from mmengine.logging import MessageHub

from mmmsv.engine import CheckpointHook
from mmmsv.whole_files import write_whole


def _runner(work_dir: Path, resume: bool = False) -> SimpleNamespace:
    """As much of a runner as the hook looks at; what it saves are the epoch and MMEngine's own notes."""
    hub = MessageHub(f"{work_dir} {time.monotonic_ns()}")

    def save_checkpoint(out_dir, filename, file_client_args=None, meta=None, backend_args=None, **_):
        content = {"epoch": meta["epoch"], "notes": dict(hub.runtime_info), "weights": torch.zeros(100)}
        mmengine.runner.save_checkpoint(content, os.path.join(out_dir, filename), backend_args=backend_args)

    return SimpleNamespace(
        work_dir=str(work_dir),
        epoch=0,
        iter=0,
        message_hub=hub,
        logger=Mock(),
        save_checkpoint=save_checkpoint,
        _resume=resume,
        _load_from=None,
        _hooks=[],
    )


def _train(hook: CheckpointHook, runner: SimpleNamespace, scores: list[dict]) -> None:
    """Save a checkpoint behind each epoch, then those that are better than all before."""
    hook.before_run(runner)
    hook.before_train(runner)
    for score in scores:
        hook._save_checkpoint(runner)
        runner.epoch += 1
        hook._save_best_checkpoint(runner, score)


def _names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def _last(work_dir: Path) -> dict:
    return torch.load((work_dir / "last_checkpoint").read_text(), weights_only=False)


def test_keeps_what_it_is_told_to_keep(tmp_path):
    hook = CheckpointHook(max_keep_ckpts=2, save_best=["mAP", "loss"])
    _train(hook, _runner(tmp_path), [{"mAP": 0.1, "loss": 3}, {"mAP": 0.3, "loss": 2}, {"mAP": 0.2, "loss": 1}])
    kept = {"epoch_2.pth", "epoch_3.pth", "best_mAP_epoch_2.pth", "best_loss_epoch_3.pth"}
    assert _names(tmp_path) == {*kept, "last_checkpoint"}
    assert _last(tmp_path)["epoch"] == 3


def test_a_failed_write_leaves_what_was_there(tmp_path, monkeypatch):
    path = tmp_path / "new/file"
    write_whole(path, b"old")
    monkeypatch.setattr(os, "fsync", Mock(side_effect=OSError("disk full")))
    with pytest.raises(OSError, match="disk full"):
        write_whole(path, b"new")
    assert _names(path.parent) == {"file"}
    assert path.read_bytes() == b"old"


class Killed(BaseException):
    """What no code catches."""


@pytest.mark.parametrize("save_best", [None, "mAP"], ids=["last", "best"])
def test_killed_at_any_step_it_leaves_whole_checkpoints(tmp_path, monkeypatch, save_best):
    """Between any two operations on files: the last checkpoint and the best one so far are there."""

    def run(folder: Path, survived: int) -> list[str]:
        """Let so many operations pass, then stop; return them."""
        done = []

        def count(name, operation):
            def counted(path, *args, **kwargs):
                if len(done) == survived:
                    raise Killed
                if name != "unlink":  # which tidies up, and a killed process does not
                    done.append(name)
                return operation(path, *args, **kwargs)

            return counted

        folder.mkdir()
        hook = CheckpointHook(max_keep_ckpts=1, save_best=save_best)
        with monkeypatch.context() as patch:
            for name in ("fsync", "replace", "remove", "unlink"):
                patch.setattr(os, name, count(name, getattr(os, name)))
            _train(hook, _runner(folder), [{"mAP": score} for score in (0.1, 0.2, 0.3)])
        return done

    steps = run(tmp_path / "all", 1000)
    # Every file comes by a replacement, and two of each kind go.
    assert (steps.count("replace"), steps.count("remove")) == ((15, 4) if save_best else (6, 2))
    epochs = []
    for survived in range(len(steps)):
        folder = tmp_path / str(survived)
        with pytest.raises(Killed):
            run(folder, survived)
        hook, runner = CheckpointHook(max_keep_ckpts=1, save_best=save_best), _runner(folder, resume=True)
        if (folder / "last_checkpoint").exists():
            last = _last(folder)
            epochs.append(last["epoch"])
            if "best_ckpt" in last["notes"]:
                torch.load(last["notes"]["best_ckpt"], weights_only=False)
            runner.epoch = last["epoch"]
            runner.message_hub.update_info_dict(last["notes"])

        # The run goes on, and tidies up.
        _train(hook, runner, [{"mAP": 0.9}])
        assert {name for name in _names(folder) if "best" not in name} == {
            f"epoch_{runner.epoch}.pth",
            "last_checkpoint",
        }
    assert epochs == sorted(epochs)
    assert set(epochs) == {1, 2, 3}


@pytest.mark.parametrize(
    "named", [None, "", "\0" * 30, "epoch_3.pth", "epoch_4.pth"], ids=["missing", "empty", "zeros", "torn", "gone"]
)
def test_resumes_from_the_newest_whole_checkpoint(tmp_path, named):
    """After a run without this hook, killed while it wrote."""
    _train(CheckpointHook(save_best="mAP"), _runner(tmp_path), [{"mAP": 0.1}, {"mAP": 0.3}, {"mAP": 0.2}])
    # Not the one with the highest number, but the one that was written last; best ones are none to resume from.
    for age, name in enumerate(("best_mAP_epoch_2.pth", "epoch_3.pth", "epoch_1.pth", "epoch_2.pth")):
        os.utime(tmp_path / name, (1000 - age, 1000 - age))
    torn = (tmp_path / "epoch_3.pth").read_bytes()[:-10]
    (tmp_path / "epoch_3.pth").write_bytes(torn)
    pointer = tmp_path / "last_checkpoint"
    pointer.unlink()
    if named is not None:
        pointer.write_text(str(tmp_path / named) if named.endswith(".pth") else named)

    runner = _runner(tmp_path, resume=True)
    CheckpointHook().before_run(runner)
    assert pointer.read_text() == str(tmp_path / "epoch_1.pth")
    runner.logger.warning.assert_called_once()

    # Only where it is to resume, and was not told from where.
    pointer.write_text("")
    CheckpointHook().before_run(_runner(tmp_path))
    runner._load_from = "other.pth"
    CheckpointHook().before_run(runner)
    assert pointer.read_text() == ""


def test_nothing_whole_to_resume_from(tmp_path):
    runner = _runner(tmp_path, resume=True)
    CheckpointHook().before_run(runner)  # nothing was saved: MMEngine begins anew
    assert _names(tmp_path) == set()
    (tmp_path / "epoch_7.pth").write_bytes(b"PK torn")
    (tmp_path / "last_checkpoint").write_text(str(tmp_path / "epoch_6.pth"))
    with pytest.raises(
        FileNotFoundError, match=r"names '.*epoch_6.pth', which is torn or gone.*looked at: epoch_7.pth"
    ):
        CheckpointHook().before_run(runner)


@pytest.mark.parametrize("given", ["out_dir", "work_dir"])
def test_a_folder_that_cannot_be_written_is_told_before_the_first_epoch(tmp_path, given):
    (tmp_path / "file").touch()  # in the place of the folder: permissions do not bind root
    folders = {"out_dir": str(tmp_path), "work_dir": str(tmp_path / "run"), given: str(tmp_path / "file/run")}
    hook = CheckpointHook(out_dir=folders["out_dir"] if given == "out_dir" else None)
    with pytest.raises(ValueError, match=r"cannot write to .*file/run.* \(Not a directory\); give another out_dir"):
        hook.before_train(_runner(folders["work_dir"]))


def test_other_folder(tmp_path):
    """``out_dir`` holds the checkpoints, in a folder with the name of the work_dir, which keeps ``last_checkpoint``."""
    work_dir, out_dir = tmp_path / "run", tmp_path / "elsewhere"
    work_dir.mkdir()
    (out_dir / "run").mkdir(parents=True)
    (out_dir / "run/epoch_9.pth.mmmsv-unfinished").touch()
    _train(CheckpointHook(out_dir=str(out_dir)), _runner(work_dir), [{}])
    assert _names(work_dir) == {"last_checkpoint"}
    assert _names(out_dir / "run") == {"epoch_1.pth"}
    (work_dir / "last_checkpoint").write_text("")
    CheckpointHook(out_dir=str(out_dir)).before_run(_runner(work_dir, resume=True))
    assert (work_dir / "last_checkpoint").read_text() == str(out_dir / "run/epoch_1.pth")


def test_other_storages_keep_their_own_way(tmp_path):
    written = []

    class Recorded(LocalBackend):
        def put(self, obj, filepath):
            written.append(os.path.basename(filepath))
            super().put(obj, filepath)

    register_backend("recorded_for_a_test", Recorded, force=True)
    hook = CheckpointHook(backend_args={"backend": "recorded_for_a_test"}, max_keep_ckpts=1)
    _train(hook, _runner(tmp_path), [{}, {}])
    assert written == ["epoch_1.pth", "epoch_2.pth"]
    assert _names(tmp_path) == {"epoch_2.pth", "last_checkpoint"}
