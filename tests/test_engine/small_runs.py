"""Runners of small models on the bundled photographs."""

import random
from pathlib import Path

from mmengine.config import Config
from mmengine.registry import init_default_scope
from mmengine.runner import Runner

CONFIG = Path(__file__).parents[2] / "configs/cls/msvmamba_n_clothing_mini.py"
SMALL = Path(__file__).parents[1] / "test_end_to_end/small"


def small_run(config: Path, tmp_path: Path, **changes: object) -> Runner:
    cfg = Config.fromfile(config)
    cfg.merge_from_dict(
        {"work_dir": str(tmp_path), "experiment_name": f"{tmp_path}_{random.getrandbits(64)}", **changes}
    )
    init_default_scope(cfg.default_scope)
    return Runner.from_cfg(cfg)


def small_classifier(tmp_path: Path, **changes: object) -> Runner:
    small = {
        "work_dir": str(tmp_path / "run"),
        "model.backbone.arch": {"_delete_": True, "embed_dims": (8, 16), "depths": (1, 1)},
        "model.backbone.out_indices": (1,),
        "model.head.in_channels": 16,
        "train_dataloader.dataset.indices": 2,
        "train_dataloader.batch_size": 2,
        "test_dataloader.dataset.indices": 2,
        "train_cfg.max_epochs": 1,
        "param_scheduler": [],
        "val_cfg": None,
        "val_dataloader": None,
        "val_evaluator": None,
    }
    return small_run(CONFIG, tmp_path, **{**small, **changes})
