"""What training and testing do beyond MMEngine: data and checkpoints are checked, resumed runs are repeatable."""

from .channels import ChannelFitHook
from .checkpoints import CheckpointHook
from .hooks import CheckpointFitHook, SeedEpochHook
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
