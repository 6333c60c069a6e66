"""What training and testing do beyond MMEngine: data and checkpoints are checked, resumed runs are repeatable."""

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
