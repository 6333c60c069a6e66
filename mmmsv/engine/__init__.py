"""Extend MMEngine's training and testing: check data and checkpoints, and make resumed runs repeatable."""

from .hooks import ChannelFitHook, CheckpointFitHook, CheckpointHook, SeedEpochHook
from .loops import EpochBasedTrainLoop, IterBasedTrainLoop, TestLoop, ValLoop
from .optim import LayerDecayOptimWrapperConstructor

__all__ = [
    "ChannelFitHook",
    "CheckpointFitHook",
    "CheckpointHook",
    "EpochBasedTrainLoop",
    "IterBasedTrainLoop",
    "LayerDecayOptimWrapperConstructor",
    "SeedEpochHook",
    "TestLoop",
    "ValLoop",
]
