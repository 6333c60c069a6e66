"""Hooks that refuse what does not fit, save whole checkpoints, and make a resumed run repeat an unbroken one."""

from .channel_fit import ChannelFitHook
from .checkpoint import CheckpointHook
from .checkpoint_fit import CheckpointFitHook
from .seed_epoch import SeedEpochHook

__all__ = ["ChannelFitHook", "CheckpointFitHook", "CheckpointHook", "SeedEpochHook"]
