"""Read the authors' checkpoints, translate them to the names used here and back, and load them whole or not at all."""

from .initializer import AuthorsCheckpoint

__all__ = ["AuthorsCheckpoint"]
