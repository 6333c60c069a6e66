"""The selective scan (S6) and its backends; imports torch, never a package of OpenMMLab."""

from .dispatch import BACKENDS, use_backend
from .interface import selective_scan

__all__ = ["BACKENDS", "selective_scan", "use_backend"]
