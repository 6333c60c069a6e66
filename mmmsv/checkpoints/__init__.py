"""The authors' checkpoints: read, translated to the names used here and back, and loaded whole or not at all."""

from .initializer import AuthorsCheckpoint

__all__ = ["AuthorsCheckpoint"]
