"""The data pipelines, evaluators and test-time augmentation of every config run, on the bundled photographs."""

import numpy as np
import pytest
from mmengine.config import Config
from mmengine.registry import DATASETS, METRICS, init_default_scope
from mmengine.runner import Runner

from .zoo import CONFIGS, ROOT, load, name

COCO = str(ROOT / "data/coco_mini") + "/"
CLOTHES = ROOT / "data/clothing_mini"
CLASSES = sorted(path.name for path in (CLOTHES / "train").iterdir())
SEMANTIC = {"img_suffix": ".jpg", "seg_map_suffix": ".png", "data_root": COCO}
# Data set: what stands in for it. COCO's own layout is that of the bundled photographs.
STAND_INS = {
    "CocoDataset": {"data_root": COCO},
    "ADE20KDataset": SEMANTIC,
    "CityscapesDataset": SEMANTIC,
    "ImageNet": {"data_root": str(CLOTHES), "metainfo": {"classes": CLASSES}},
    "BaseSegDataset": {},
    "CustomDataset": {},
}


def stand_in(dataset: dict, split: str) -> dict:
    dataset = {**dataset, **STAND_INS[dataset["type"]]}
    if dataset["type"] in ("ADE20KDataset", "CityscapesDataset"):
        dataset["data_prefix"] = {"img_path": f"{split}2017", "seg_map_path": f"semantic/{split}2017"}
    return dataset


_samples: dict[str, dict] = {}


def first_sample(cfg: Config, stage: str) -> dict:
    """Read a sample of a stage; configs with the same data share it."""
    dataset = stand_in(cfg[f"{stage}_dataloader"].dataset, "train" if stage == "train" else "val")
    key = str(dataset)
    if key not in _samples:
        init_default_scope(cfg.default_scope)
        np.random.seed(0)
        _samples[key] = DATASETS.build(dataset)[0]
    return _samples[key]


@pytest.mark.slow
@pytest.mark.parametrize("path", CONFIGS, ids=name)
def test_samples(path):
    cfg = load(path)
    train, test = first_sample(cfg, "train"), first_sample(cfg, "test")
    size = cfg.model.get("data_preprocessor", {}).get("size")
    if cfg.default_scope == "mmseg":
        # What is smaller than a crop is padded by the data_preprocessor.
        assert size == cfg.crop_size == next(s.crop_size for s in cfg.train_pipeline if s.type == "RandomCrop")
        assert all(side <= most for side, most in zip(train["inputs"].shape[1:], size, strict=True))
        assert train["data_samples"].gt_sem_seg.shape == train["inputs"].shape[1:]
    elif cfg.default_scope == "mmdet":
        assert len(train["data_samples"].gt_instances.masks) == len(train["data_samples"].gt_instances) > 0
    else:
        side = int(path.stem[-3:]) if path.stem.endswith("384") else 112 if path.stem.endswith("mini") else 224
        assert train["inputs"].shape == test["inputs"].shape == (3, side, side)
        assert train["data_samples"].gt_label == 0
    views = 12 if path.stem.endswith("_ms") else 1
    assert len(test["inputs"] if isinstance(test["inputs"], list) else [test["inputs"]]) == views


MEASURED = {"mmdet": ("metrics", ["bbox", "segm"]), "mmseg": ("metrics", ["mIoU"]), "mmpretrain": ("topk", (1, 5))}


@pytest.mark.slow
@pytest.mark.parametrize("path", CONFIGS, ids=name)
def test_evaluators(path):
    cfg = load(path)
    init_default_scope(cfg.default_scope)
    for evaluator in (cfg.val_evaluator, cfg.test_evaluator):
        if evaluator.type == "CocoMetric":
            evaluator = {**evaluator, "ann_file": COCO + "annotations/instances_val2017.json"}
        measured, what = MEASURED[cfg.default_scope]
        assert getattr(METRICS.build(evaluator), measured) == what


MULTI_SCALE = [path for path in CONFIGS if path.stem.endswith("_ms")]


@pytest.mark.slow
@pytest.mark.parametrize("path", MULTI_SCALE, ids=name)
def test_multi_scale_differs_in_the_test_alone(path):
    cfg, plain = load(path), load(path.with_stem(path.stem.removesuffix("_ms")))
    assert {key for key in cfg.keys() | plain.keys() if cfg.get(key) != plain.get(key)} == {
        "custom_hooks",
        "test_dataloader",
    }
    hooks, pipeline = cfg.custom_hooks, cfg.test_dataloader.dataset.pipeline
    assert hooks == [*plain.custom_hooks, {"type": "PrepareTTAHook", "tta_cfg": plain.tta_model}]
    assert pipeline == plain.tta_pipeline


@pytest.mark.slow
def test_multi_scale_predicts_from_twelve_views(tmp_path):
    cfg = Config.fromfile(ROOT / "tests/test_end_to_end/small/mmseg.py")
    # Few classes: every view is enlarged to the size of the photograph.
    cfg.model.decode_head.num_classes = cfg.model.auxiliary_head.num_classes = 3
    multi_scale = load(MULTI_SCALE[0])
    read, *augment = multi_scale.test_dataloader.dataset.pipeline
    pipeline = [read, {"type": "Resize", "scale": (128, 128)}, *augment]
    cfg.test_dataloader.dataset.update(indices=1, pipeline=pipeline)
    cfg.update(custom_hooks=multi_scale.custom_hooks, work_dir=str(tmp_path), experiment_name=tmp_path.name)
    init_default_scope(cfg.default_scope)
    runner = Runner.from_cfg(cfg)
    model, sizes = runner.model, []
    model.backbone.register_forward_pre_hook(lambda _, inputs: sizes.append(inputs[0].shape))
    assert "mIoU" in runner.test()
    assert sizes == [(1, 3, side, side) for side in (64, 96, 128, 160, 192, 224) for _ in ("as it is", "flipped")]
