"""The selective scan (S6) and its backends; imports torch, never a package of OpenMMLab."""

from .dispatch import BACKENDS, use_backend
from .interface import scan2d, selective_scan
from .routes import ROUTES, Route

__all__ = ["BACKENDS", "ROUTES", "Route", "scan2d", "selective_scan", "use_backend"]
