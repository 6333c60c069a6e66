"""What training and testing do beyond MMEngine: data and checkpoints are checked, resumed runs are repeatable."""

from .hooks import CheckpointFitHook, SeedEpochHook
from .loops import EpochBasedTrainLoop, IterBasedTrainLoop, TestLoop, ValLoop

__all__ = ["CheckpointFitHook", "EpochBasedTrainLoop", "IterBasedTrainLoop", "SeedEpochHook", "TestLoop", "ValLoop"]
