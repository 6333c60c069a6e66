"""The bundled data sets load in full, from any directory."""

from pathlib import Path

import pytest
import torch
from mmengine.config import Config
from mmengine.registry import DATASETS, init_default_scope

CONFIGS = Path(__file__).parents[2] / "configs"


@pytest.fixture(autouse=True)
def elsewhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def _datasets(config: str) -> dict:
    cfg = Config.fromfile(CONFIGS / config)
    init_default_scope(cfg.default_scope)
    return {stage: DATASETS.build(cfg[f"{stage}_dataloader"].dataset) for stage in ("train", "val", "test")}


def test_instances():
    datasets = _datasets("mask_rcnn/msvmamba_n_coco_mini.py")
    # One photograph to train on has no instance, and training leaves it out.
    assert {stage: len(dataset) for stage, dataset in datasets.items()} == {"train": 23, "val": 8, "test": 24}
    for stage, boxes, crowds in (("train", 116, 0), ("test", 116, 0), ("val", 64, 1)):
        samples = [sample["data_samples"] for sample in datasets[stage]]
        assert sum(len(sample.gt_instances) + len(sample.ignored_instances) for sample in samples) == boxes
        # A crowd is marked so in COCO itself; all else would be lost if masks were not decoded.
        assert sum(len(sample.ignored_instances) for sample in samples) == crowds
        assert all(mask.any() for sample in samples for mask in sample.gt_instances.masks.masks)
        labels = torch.cat([sample.gt_instances.labels for sample in samples])
        assert 0 <= labels.min() < labels.max() < 80


def test_semantic_masks():
    datasets = _datasets("upernet/msvmamba_n_coco_mini.py")
    assert {stage: len(dataset) for stage, dataset in datasets.items()} == {"train": 24, "val": 8, "test": 8}
    for dataset in datasets.values():
        assert len(dataset.metainfo["classes"]) == 133
        assert dataset.metainfo["classes"][0] == "person"
        labels = torch.cat([sample["data_samples"].gt_sem_seg.data.unique() for sample in dataset]).unique()
        assert 0 <= labels[0] < labels[-2] <= 132
        assert labels[-1] == 255  # unlabelled
        assert len(labels) > 20


def test_clothes():
    datasets = _datasets("cls/msvmamba_n_clothing_mini.py")
    for stage, per_class in (("train", 40), ("val", 12), ("test", 12)):
        labels = torch.tensor([datasets[stage].get_data_info(i)["gt_label"] for i in range(len(datasets[stage]))])
        assert labels.bincount().tolist() == [per_class] * 10
        assert datasets[stage][0]["inputs"].shape == (3, 112, 112)
