"""What the models of the configs cost: as ``mmmsv.analysis.flops`` counts, but what they share is counted once."""

import copy
from typing import NamedTuple

import torch
from mmengine.config import Config
from torch import nn

from mmmsv.analysis.flops import SHAPES, count, parameters

from .configs import build


class Cost(NamedTuple):
    """What a model costs.

    Args:
        parameters: Of the whole model.
        backbone: Parameters of its backbone alone.
        macs: For one image, in the published convention.
    """

    parameters: int
    backbone: int
    macs: int


_costs: dict[str, Cost] = {}
_macs_of_backbones: dict[str, int] = {}
_macs_of_heads: dict[str, int] = {}


def cost(cfg: Config) -> Cost:
    """Count what the model of a config costs.

    Classifiers are counted at the size that they are trained at, others at the size that figures are published for.
    """
    shape = SHAPES[cfg.default_scope]
    if cfg.default_scope == "mmpretrain":
        shape = next((step.scale, step.scale) for step in cfg.train_pipeline if step.type == "RandomResizedCrop")
    key = str((shape, {part: value for part, value in cfg.model.items() if part != "data_preprocessor"}))
    if key not in _costs:
        model = copy.deepcopy(build(cfg)).eval().to_empty(device="cpu")
        total, backbone = parameters(model), parameters(model.backbone)
        arch = str((shape, cfg.model.backbone.type, cfg.model.backbone.arch))
        if arch not in _macs_of_backbones:
            _macs_of_backbones[arch] = _macs_of_backbone(model.backbone, shape)
        # At one shape all configs take the maps of the same stages.
        model.backbone = _Maps(model.backbone)
        macs = _macs_of_backbones[arch] + _macs(model, shape, str(cfg.model.get("roi_head")))
        _costs[key] = Cost(total, backbone, macs)
    return _costs[key]


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


def _macs_of_backbone(backbone: nn.Module, shape: tuple[int, int]) -> int:
    """Count one block of each stage: the others do the same (tests/test_tools/test_get_flops.py counts each)."""
    others = 0
    for i, (stage, dim) in enumerate(zip(backbone.stages, backbone.arch.embed_dims, strict=True)):
        if len(stage.blocks) > 1:
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
    if heads not in _macs_of_heads:
        box_and_mask = count(model, shape, proposals=2).total - one
        model.roi_head.mask_head = None
        one_box, two_boxes = (count(model, shape, proposals=boxes).total for boxes in (1, 2))
        box = two_boxes - one_box
        _macs_of_heads[heads] = 999 * box + 99 * (box_and_mask - box)
    return one + _macs_of_heads[heads]
