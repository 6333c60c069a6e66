"""Missing and damaged data are reported before anything is trained or tested."""

import pytest

from mmmsv.engine.loops import missing_paths

from .small_runs import SMALL, small_classifier, small_run


def test_missing_paths(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "there/images/train").mkdir(parents=True)
    there = {"data_root": "there", "data_prefix": {"img": "images/"}}
    assert missing_paths(there) == []
    assert missing_paths({**there, "ann_file": "all.json"}) == [str(tmp_path / "there/all.json")]
    assert missing_paths({**there, "data_prefix": "labels"}) == [str(tmp_path / "there/labels")]
    # A folder is missed, too, if there is nothing in it.
    assert missing_paths({**there, "data_prefix": "images/train"}) == [str(tmp_path / "there/images/train")]
    # The root says it all.
    gone = {"data_root": "gone", "ann_file": "all.json", "data_prefix": {"img": "images/"}}
    assert missing_paths(gone) == [str(tmp_path / "gone")]
    assert missing_paths({"data_root": "s3://bucket/coco", "ann_file": "all.json"}) == []
    # Inside wrappers.
    assert missing_paths({"type": "RepeatDataset", "dataset": {"datasets": [there, gone]}}) == [str(tmp_path / "gone")]
    # An evaluator may name its own file.
    metric = {"type": "CocoMetric", "ann_file": "there/val.json"}
    assert missing_paths(there, metric) == [str(tmp_path / "there/val.json")]


def test_folder_that_the_data_set_names_itself(tmp_path):
    """ImageNet's config has a root and a split, of which mmpretrain makes a folder."""
    (tmp_path / "imagenet/train").mkdir(parents=True)
    split = {"_delete_": True, "type": "ImageNet", "data_root": str(tmp_path / "imagenet"), "split": "val"}
    runner = small_classifier(tmp_path, **{"test_dataloader.dataset": split})
    with pytest.raises(FileNotFoundError, match=r"TestLoop: the data set lacks /.*imagenet/val .*git checkout -- data"):
        runner.test()


def test_evaluator_without_annotations(tmp_path):
    runner = small_run(SMALL / "mmdet.py", tmp_path, **{"val_evaluator.ann_file": "nowhere.json"})
    with pytest.raises(FileNotFoundError, match=r"ValLoop: the data set lacks /.*nowhere.json .*git checkout -- data"):
        runner.val()


@pytest.mark.parametrize("content", ["", '{"images": [{"id": 1, "file_na'], ids=["empty", "cut-off"])
def test_damaged_annotations(tmp_path, content):
    annotations = tmp_path / "val.json"
    annotations.write_text(content)
    changes = {"val_dataloader.dataset.ann_file": str(annotations), "val_evaluator.ann_file": str(annotations)}
    with pytest.raises(ValueError, match=f"ValLoop: what is read of the data set, such as {annotations}, is") as error:
        small_run(SMALL / "mmdet.py", tmp_path, **changes).val()
    assert "git checkout -- data" in str(error.value)
