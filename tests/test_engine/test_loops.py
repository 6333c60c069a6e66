"""Missing and damaged data are reported before anything is trained or tested; data that fetch themselves are not."""

import json
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from mmengine.dataset import BaseDataset
from mmengine.registry import DATASETS, DefaultScope
from mmengine.runner import Runner
from mmpretrain.datasets import CIFAR10, MNIST

from mmmsv.engine import EpochBasedTrainLoop
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
    # Objects have no paths; paths may be objects, and elsewhere than the root.
    assert missing_paths({"datasets": [object(), {"dataset": object()}, gone]}) == [str(tmp_path / "gone")]
    assert missing_paths({"data_root": tmp_path / "gone"}) == [str(tmp_path / "gone")]
    elsewhere = {"data_root": "gone", "ann_file": __file__, "data_prefix": {"img": str(tmp_path / "there/images")}}
    assert missing_paths(elsewhere) == []
    assert missing_paths({"ann_file": "https://example.org/all.json", "data_prefix": "there/images"}) == []


def test_folder_that_the_data_set_names_itself(tmp_path):
    """ImageNet's config has a root and a split, of which mmpretrain makes a folder."""
    (tmp_path / "imagenet/train").mkdir(parents=True)
    split = {"_delete_": True, "type": "ImageNet", "data_root": str(tmp_path / "imagenet"), "split": "val"}
    runner = small_classifier(tmp_path, **{"test_dataloader.dataset": split})
    with pytest.raises(FileNotFoundError, match=r"TestLoop: the data set lacks /.*imagenet/val .*no entry for this Im"):
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


READ = [{"type": "LoadImageFromFile"}]
SOURCES = {"CocoDataset": "COCO from cocodataset.org", "ImageNet": "ImageNet from image-net.org"}


def build(dataset, scope="mmpretrain", data_source=SOURCES):
    """Build a loop of a data set, without a model."""
    runner = SimpleNamespace(
        cfg={"data_source": data_source},
        build_dataloader=Runner.build_dataloader,
        seed=0,
        _randomness_cfg={},
        visualizer=SimpleNamespace(),
    )
    dataloader = {"dataset": dataset, "batch_size": 1, "sampler": {"type": "DefaultSampler"}}
    with DefaultScope.overwrite_default_scope(scope):
        return EpochBasedTrainLoop(runner, dataloader, max_epochs=1)


def error_of(dataset, **options):
    with pytest.raises(FileNotFoundError, match="EpochBasedTrainLoop: the data set lacks") as error:
        build(dataset, **options)
    return str(error.value)


@pytest.fixture
def listed(tmp_path):
    """A data set of one image, with an annotation file, and without the folder of the image."""
    (tmp_path / "all.json").write_text(json.dumps({"metainfo": {}, "data_list": [{"img_path": "1.jpg"}]}))
    return {
        "type": BaseDataset,
        "data_root": str(tmp_path),
        "ann_file": "all.json",
        "data_prefix": {"img_path": "images"},
    }


def wrap_in_repeat(dataset):
    return {"type": "RepeatDataset", "times": 2, "dataset": dataset}


def wrap_in_concat(dataset):
    return {"type": "ConcatDataset", "datasets": [dataset, dataset]}


def wrap_in_fold(dataset):
    return {"type": "KFoldDataset", "fold": 0, "num_splits": 2, "dataset": dataset}


WRAPPERS = [lambda dataset: dataset, wrap_in_repeat, wrap_in_concat, wrap_in_fold]


FETCHING = [
    *((kind, WRAPPERS[0]) for kind in ("CIFAR10", "CIFAR100", "MNIST", "FashionMNIST")),
    *(("CIFAR10", wrap) for wrap in WRAPPERS[1:]),
]


@pytest.mark.parametrize(("kind", "wrap"), FETCHING)
def test_data_set_that_fetches_itself(tmp_path, monkeypatch, kind, wrap):
    def fetch(self):
        (tmp_path / "fetched").mkdir(exist_ok=True)
        return [{"img": None, "gt_label": 0}, {"img": None, "gt_label": 1}]

    for owner in (CIFAR10, MNIST):
        monkeypatch.setattr(owner, "load_data_list", fetch)
    dataset = {"type": kind, "data_root": str(tmp_path / "fetched"), "split": "train", "pipeline": []}
    assert len(build(wrap(dataset)).dataloader.dataset)


@pytest.mark.parametrize("wrap", WRAPPERS)
def test_data_set_that_may_not_fetch_itself(tmp_path, wrap):
    dataset = {"type": "CIFAR10", "data_root": str(tmp_path / "cifar"), "split": "train", "download": False}
    error = error_of(wrap(dataset))
    assert f"lacks {tmp_path}/cifar (" in error
    assert error.endswith("How to get it: CIFAR10 fetches itself with download=True")


def test_own_error_of_a_data_set_that_fetches_itself(tmp_path, monkeypatch):
    def fail(self):
        raise ConnectionError("no network")

    monkeypatch.setattr(CIFAR10, "load_data_list", fail)
    with pytest.raises(ConnectionError, match="no network"):
        build({"type": "CIFAR10", "data_root": str(tmp_path / "cifar"), "split": "train"})


class Synthetic(BaseDataset):
    """Makes its data, and the folder that it is told to keep them in."""

    def load_data_list(self):
        if self.data_root:
            Path(self.data_root).mkdir()
        return [{"number": 1}]


@pytest.mark.parametrize("folder", ["made", None])
def test_data_set_that_makes_its_data(tmp_path, folder):
    root = {"data_root": str(tmp_path / folder)} if folder else {"data_root": ""}
    assert len(build({"type": Synthetic, **root}).dataloader.dataset) == 1


def test_data_set_that_was_built(tmp_path):
    dataset = Synthetic(data_root=str(tmp_path / "made"))
    build(dataset)
    build({"type": "RepeatDataset", "times": 2, "dataset": dataset})
    with DefaultScope.overwrite_default_scope("mmpretrain"):
        dataset = DATASETS.build({"type": "RepeatDataset", "times": 2, "dataset": {"type": Synthetic, "data_root": ""}})
    build(dataset)


def test_folder_of_the_images_is_missing(listed, tmp_path):
    assert f"lacks {tmp_path}/images (" in error_of({**listed, "pipeline": READ})
    assert f"lacks {tmp_path}/images (" in error_of(wrap_in_repeat({**listed, "pipeline": READ}))
    # Not where the pipeline reads them from elsewhere, passes over what it does not find, or reads none.
    lmdb = {"backend": "lmdb", "db_path": "images.lmdb"}
    for pipeline in ([{**READ[0], "backend_args": lmdb}], [{**READ[0], "ignore_empty": True}], []):
        build({**listed, "pipeline": pipeline})
    # The annotations may have whole paths.
    (tmp_path / "all.json").write_text(json.dumps({"metainfo": {}, "data_list": [{"img_path": __file__}]}))
    build({**listed, "pipeline": READ})


def test_folders_of_segmentation(tmp_path):
    (tmp_path / "images").mkdir()
    dataset = {
        "type": "BaseSegDataset",
        "data_root": str(tmp_path),
        "data_prefix": {"img_path": "images", "seg_map_path": "labels"},
        "pipeline": [*READ, {"type": "LoadAnnotations"}],
    }
    assert f"lacks {tmp_path}/images, {tmp_path}/labels (" in error_of(dataset, scope="mmseg")
    (tmp_path / "images/1.jpg").touch()
    assert f"lacks {tmp_path}/labels (" in error_of(dataset, scope="mmseg")
    build({**dataset, "pipeline": READ}, scope="mmseg")
    # Lists of files.
    assert f"lacks {tmp_path}/labels, {tmp_path}/train.txt (" in error_of(
        {**dataset, "ann_file": "train.txt"}, scope="mmseg"
    )


def test_folders_of_classification(tmp_path):
    dataset = {"type": "CustomDataset", "data_root": str(tmp_path / "root"), "pipeline": READ}
    assert f"lacks {tmp_path}/root (" in error_of(dataset)
    (tmp_path / "root").mkdir()
    assert f"lacks {tmp_path}/root (" in error_of(dataset)


@pytest.mark.parametrize(
    ("changes", "hint"),
    [
        ({}, "How to get it: COCO from cocodataset.org"),
        ({"type": "mmdet.CocoDataset"}, "How to get it: COCO from cocodataset.org"),
        (
            {"metainfo": {"classes": ("balloon",)}},
            "How to get it: data_source of the config has no entry for this Coco",
        ),
        (
            {"type": "CityscapesDataset"},
            "How to get it: data_source of the config has no entry for this CityscapesDataset",
        ),
    ],
)
def test_hint_is_that_of_the_data_set_in_use(tmp_path, changes, hint):
    coco = {"type": "CocoDataset", "data_root": str(tmp_path / "coco"), "ann_file": "all.json", **changes}
    assert hint in error_of(coco, scope="mmdet")
    # Beside another one, which is there.
    both = {"type": "ConcatDataset", "datasets": [{"type": Synthetic, "data_root": ""}, coco]}
    error = error_of(both, scope="mmdet")
    assert hint in error
    assert "Synthetic" not in error
    assert error_of(coco, scope="mmdet", data_source="by post").endswith("How to get it: by post")


@pytest.mark.parametrize("source", [None, 3, ["here"], {"ImageNet": None}, {"ImageNet": ["here"]}], ids=str)
def test_data_source_that_is_no_sentence(source):
    with pytest.raises(TypeError, match=r"data_source of the config is .*, expected a sentence that says how to get"):
        build({"type": "CustomDataset", "data_root": "nowhere"}, data_source=source)


class Odd(torch.utils.data.Dataset):
    """Two samples, and attributes that other data sets have for something else."""

    def __init__(self, **attributes):
        vars(self).update(attributes)
        self.dataset = self

    def __len__(self):
        return 2

    def __getitem__(self, index):
        return torch.ones(1)


@pytest.mark.parametrize("datasets", [None, 3])
def test_data_sets_that_are_no_wrappers(datasets):
    build({"type": Odd, "datasets": datasets})
