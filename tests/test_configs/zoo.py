"""The configs and what their models cost.

Models are built in full size without storage and without initial values, so that each takes moments.
"""

import copy
from functools import cache
from pathlib import Path
from unittest.mock import patch

import torch
from mmengine.config import Config, utils
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
    "vmamba_v1_t": "tiny",
    "vmamba_v1_s": "small",
    "vmamba_v1_b": "base",
    "vmamba_t": "v2_tiny_s1l8",
    "vmamba_s": "v2_small_s2l15",
    "vmamba_b": "v2_base_s2l15",
    "vmamba_t_s2l5": "v2_tiny_s2l5",
    "vmamba_s_s1l20": "v2_small_s1l20",
    "vmamba_b_s1l20": "v2_base_s1l20",
}


def name(path: Path) -> str:
    return f"{path.parent.name}/{path.stem}"


# For a base of another library MMEngine reads the metafiles of all its configs, each time.
_read_metafile = cache(utils.load)


@cache
def load(path: Path) -> Config:
    with patch.object(utils, "load", _read_metafile):
        return Config.fromfile(path)


_models: dict[str, nn.Module] = {}


def build(cfg: Config) -> nn.Module:
    """Build the model; configs with the same one share it."""
    init_default_scope(cfg.default_scope)
    key = str(cfg.model)
    if key not in _models:
        # Drawing initial values of nothing takes half of the time.
        with torch.device("meta"), patch.object(nn.init, "_no_grad_trunc_normal_", lambda tensor, *_, **__: tensor):
            _models[key] = MODELS.build(cfg.model)
    return _models[key]


def _size(image: tuple[int, int], stage: int) -> tuple[int, ...]:
    return tuple(-(-side // (4 << stage)) for side in image)


class _Maps(nn.Module):
    """Return maps of the sizes that a backbone's would have, at no cost."""

    def __init__(self, backbone: nn.Module) -> None:
        super().__init__()
        self.channels = {i: backbone.arch.embed_dims[i] for i in backbone.out_indices}

    def forward(self, image: torch.Tensor) -> tuple[torch.Tensor, ...]:
        return tuple(image.new_empty(1, dim, *_size(image.shape[2:], i)) for i, dim in self.channels.items())


class _OnMap(nn.Module):
    """Run a block on a map of the sizes that its stage has for an image."""

    def __init__(self, block: nn.Module, stage: int, channels: int) -> None:
        super().__init__()
        self.block, self.stage, self.channels = block, stage, channels

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        return self.block(image.new_empty(1, *_size(image.shape[2:], self.stage), self.channels))


_costs: dict[str, tuple[int, int]] = {}
_backbones: dict[str, int] = {}
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
        total, arch = parameters(model), str((shape, cfg.model.backbone.type, cfg.model.backbone.arch))
        if arch not in _backbones:
            _backbones[arch] = _macs_of_backbone(model.backbone, shape)
        # At one shape all configs take the maps of the same stages.
        model.backbone = _Maps(model.backbone)
        _costs[key] = total, _backbones[arch] + _macs(model, shape, str(cfg.model.get("roi_head")))
    return _costs[key]


def _macs_of_backbone(backbone: nn.Module, shape: tuple[int, int]) -> int:
    """Count one block of each stage: the others do the same (tests/test_tools/test_get_flops.py counts each)."""
    others = 0
    for i, (stage, dim) in enumerate(zip(backbone.stages, backbone.arch.embed_dims, strict=True)):
        others += (len(stage.blocks) - 1) * count(_OnMap(stage.blocks[0], i, dim), shape).total
        stage.blocks = stage.blocks[:1]
    return others + count(backbone, shape).total


def _macs(model: nn.Module, shape: tuple[int, int], heads: str) -> int:
    """Count 1000 boxes and 100 masks, though mmdet's forward of a cascade masks all boxes, in each stage.

    Heads do the same for each of them, so two are enough, and behind one neck.
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
