"""Refuse necks and heads that do not take the maps of the backbone, before anything is trained or tested."""

from collections.abc import Mapping, Sequence
from typing import TypeGuard

from mmengine.hooks import Hook
from mmengine.runner import Runner

from mmmsv.engine.config_types import type_name
from mmmsv.registry import HOOKS

from .unwrap import unwrap

# Heads that read the maps of the backbone where there is no neck, in mmdet, mmseg and mmpretrain.
_HEADS = ("rpn_head", "bbox_head", "panoptic_head", "decode_head", "auxiliary_head", "head")
# Necks after which the last map has the channels that it had before.
_POOLINGS = ("GlobalAveragePooling", "GeneralizedMeanPooling")


@HOOKS.register_module()
class ChannelFitHook(Hook):
    """Refuse a neck or head whose ``in_channels`` or ``in_index`` do not fit the backbone's maps.

    It compares the backbone's ``out_channels`` with what the config says, in the conventions of the three libraries: a
    list of ``in_channels`` is one number for each map, or for each map of ``in_index``; a single number is that of the
    last map, or of the one map of ``in_index``. After a neck, unless it only pools, heads see other maps and are
    not looked at. Says nothing about modules and backbones that name no channels, or in another way.

    Raises:
        ValueError: They do not fit.
    """

    def before_run(self, runner: Runner) -> None:
        model, cfg = unwrap(runner.model), runner.cfg.get("model")
        while isinstance(cfg, Mapping) and "module" in cfg:
            cfg = cfg["module"]
        maps = getattr(getattr(model, "backbone", None), "out_channels", None)
        if isinstance(cfg, Mapping) and isinstance(maps, tuple) and (faults := channel_faults(cfg, maps)):
            name = type(model.backbone).__name__
            raise ValueError(f"{'; '.join(faults)}, since this {name} gives maps of {list(maps)} channels")


def channel_faults(model: Mapping, maps: Sequence[int]) -> list[str]:
    """List what in the config of a model does not fit the maps of its backbone.

    Args:
        model: The config, with ``neck`` and heads.
        maps: Channels of each map.

    Returns:
        A phrase for each mismatch, with the value that would fit.
    """
    necks = _parts(model, "neck")
    # The second of several necks sees the maps of the first.
    seen = necks[:1]
    if all(type_name(neck) in _POOLINGS for _, neck in necks):
        seen = [part for name in _HEADS for part in _parts(model, name)]
    return [fault for name, part in seen if (fault := _fault(name, part, list(maps)))]


def _parts(model: Mapping, name: str) -> list[tuple[str, Mapping]]:
    part = model.get(name)
    if isinstance(part, Mapping):
        return [(f"model.{name}", part)]
    listed = [(f"model.{name}[{i}]", one) for i, one in enumerate(part or [])]
    # A cascade of mmseg's: from the second on they may read what the one before made.
    return listed[:1] if name == "decode_head" else listed


def _fault(name: str, part: Mapping, maps: list[int]) -> str | None:
    given = part.get("in_channels")
    index = part.get("in_index", -1 if isinstance(given, int) else list(range(len(maps))))
    # ViTDet's SimpleFPN takes one map, and names the channels of those that it makes of it.
    if not (_counts(given) and _counts(index)) or "backbone_channel" in part:
        return None
    channels, indices = ([value] if isinstance(value, int) else list(value) for value in (given, index))
    if not all(-len(maps) <= i < len(maps) for i in indices):
        return f"{name}.in_index is {index}, but there are {len(maps)} maps"
    fitting = [maps[i] for i in indices]
    # This neck takes the maps from the last to the first.
    if type_name(part) == "YOLOV3Neck":
        fitting.reverse()
    if channels == fitting:
        return None
    return f"{name}.in_channels is {given}, but should be {fitting[0] if isinstance(given, int) else fitting}"


def _counts(value: object) -> TypeGuard[int | Sequence[int]]:
    values = value if isinstance(value, (list, tuple)) else [value]
    return all(isinstance(one, int) for one in values)
