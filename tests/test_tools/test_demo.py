"""What the demo checks: a run that learns nothing must not pass for one that does."""

from pathlib import Path

import matplotlib.pyplot as plt
import pytest
from mmengine.config import Config
from mmengine.registry import init_default_scope
from mmengine.runner import Runner

from .load import ROOT, load_tool


@pytest.fixture(scope="module")
def demo():
    return load_tool("demo")


def training_data(demo, **annotations):
    cfg = Config.fromfile(ROOT / demo.CONFIG)
    init_default_scope("mmdet")
    cfg.train_dataloader.dataset.pipeline[1].update(annotations)
    return Runner.build_dataloader(cfg.train_dataloader).dataset


def test_bundled_photographs_pass(demo):
    assert demo.count_boxes(training_data(demo)) == {"images": 23, "boxes": 116}


def test_boxes_that_training_would_ignore_are_noticed(demo):
    """poly2mask=False: mmdet loads the RLE masks of these photographs, and ignores every one."""
    with pytest.raises(ValueError, match=r"jpg: 0 boxes to learn from and \d+ ignored.*poly2mask=True"):
        demo.count_boxes(training_data(demo, poly2mask=False))


def record(loss, box=0.1, mask=0.1):
    return {"loss": loss, "loss_bbox": box, "loss_mask": mask}


def test_losses_of_a_run_that_learns(demo):
    assert demo.check_losses([record(5.0, box=0.0), record(4.0), record(1.0)]) == (5.0, 1.0)


@pytest.mark.parametrize(
    ("records", "message"),
    [
        ([record(5.0, box=0.0), record(1.0, box=0.0)], "the network saw none"),
        ([record(5.0, mask=0.0), record(1.0, mask=0.0)], "the network saw none"),
        ([record(1.0), record(2.0)], "the loss did not fall: 1.000 at first, 2.000 at last"),
        ([record(1.0), record(float("nan"))], "the loss did not fall"),
    ],
)
def test_losses_of_a_run_that_does_not(demo, records, message):
    with pytest.raises(ValueError, match=message):
        demo.check_losses(records)


def test_a_failed_command_is_shown(demo, tmp_path, monkeypatch):
    monkeypatch.chdir(ROOT)
    with pytest.raises(SystemExit, match=r"(?s)No such command.*mim tain failed; all that it printed is in .*mim.log"):
        demo.mim("tain", [], tmp_path)
    assert "No such command 'tain'" in (tmp_path / "mim.log").read_text()


@pytest.mark.end_to_end
def test_from_end_to_end(demo, tmp_path, monkeypatch):
    """On a network too small to learn them: all is tested and drawn, and the demo says that it fell short."""
    monkeypatch.setattr(demo, "CONFIG", Path("tests/test_end_to_end/small/mmdet.py"))
    monkeypatch.setattr("sys.argv", ["demo.py", "--out", str(tmp_path)])
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.chdir(ROOT)
    with pytest.raises(SystemExit, match=r"mask AP50 is 0.\d+ on the photographs it learnt, expected 0.3 or more"):
        demo.main()
    report = (tmp_path / "report.md").read_text()
    assert all(f"{row} | 0." in report for row in ("untrained", "photographs it learnt", "photographs it never saw"))
    pictures = sorted((tmp_path / "pictures").glob("*.png"))
    assert len(pictures) == 4
    height, width, _ = plt.imread(pictures[0]).shape
    assert width > 2 * height
