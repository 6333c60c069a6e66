"""Hooks: what does not fit is an error, checkpoints are whole, and a resumed run repeats an unbroken one."""

from .channel_fit import ChannelFitHook
from .checkpoint import CheckpointHook
from .checkpoint_fit import CheckpointFitHook
from .seed_epoch import SeedEpochHook

__all__ = ["ChannelFitHook", "CheckpointFitHook", "CheckpointHook", "SeedEpochHook"]
