"""The configs and what their models cost.

Models are built in full size without storage and without initial values, so that each takes moments.
"""

import copy
from functools import cache
from pathlib import Path

import torch
from mmengine.config import Config
from mmengine.registry import MODELS, init_default_scope
from torch import nn

from mmmsv.analysis.flops import SHAPES, count, parameters

ROOT = Path(__file__).parents[2]
CONFIGS = sorted(path for path in (ROOT / "configs").glob("*/*.py") if path.parent.name != "_base_")
# The sizes in the names of files, and the archs that they stand for.
ARCHS = {
    "msvmamba_n": "nano",
    "msvmamba_m": "micro",
    "msvmamba_t": "tiny",
    "msvmamba_v3_t": "v3_tiny",
    "msvmamba_v3_s": "v3_small",
    "msvmamba_v3_b": "v3_base",
    "vmamba_t": "v2_tiny_s1l8",
    "vmamba_s": "v2_small_s2l15",
    "vmamba_b": "v2_base_s2l15",
}


def name(path: Path) -> str:
    return f"{path.parent.name}/{path.stem}"


@cache
def load(path: Path) -> Config:
    return Config.fromfile(path)


_models: dict[str, nn.Module] = {}


def build(cfg: Config) -> nn.Module:
    """Build the model; configs with the same one share it."""
    init_default_scope(cfg.default_scope)
    key = str(cfg.model)
    if key not in _models:
        with torch.device("meta"):
            _models[key] = MODELS.build(cfg.model)
    return _models[key]


_costs: dict[str, tuple[int, int]] = {}
_heads: dict[str, int] = {}


def cost(cfg: Config) -> tuple[int, int]:
    """Count parameters, and MACs in the published convention; what several configs share is counted once.

    Classifiers are counted at the size that they are trained at, others at the size that figures are published for.
    """
    shape = SHAPES[cfg.default_scope]
    if cfg.default_scope == "mmpretrain":
        shape = next((step.scale, step.scale) for step in cfg.train_pipeline if step.type == "RandomResizedCrop")
    key = str((shape, {part: value for part, value in cfg.model.items() if part != "data_preprocessor"}))
    if key not in _costs:
        model = copy.deepcopy(build(cfg)).eval().to_empty(device="cpu")
        total = parameters(model)
        _costs[key] = total, _macs(model, shape, str(cfg.model.get("roi_head")))
    return _costs[key]


def _macs(model: nn.Module, shape: tuple[int, int], heads: str) -> int:
    """Count 1000 boxes and 100 masks, though mmdet's forward of a cascade masks all boxes, in each stage.

    Heads do the same for each of them, so two are enough, and behind one backbone.
    """
    if not getattr(model, "with_roi_head", False):
        return count(model, shape).total
    one = count(model, shape, proposals=1).total
    if heads not in _heads:
        box_and_mask = count(model, shape, proposals=2).total - one
        model.roi_head.mask_head = None
        one_box, two_boxes = (count(model, shape, proposals=boxes).total for boxes in (1, 2))
        box = two_boxes - one_box
        _heads[heads] = 999 * box + 99 * (box_and_mask - box)
    return one + _heads[heads]
