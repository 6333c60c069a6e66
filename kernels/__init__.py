"""The selective scan (S6) and its backends; imports torch, never a package of OpenMMLab."""

from .dispatch import BACKENDS, use_backend
from .interface import scan2d, selective_scan
from .linear import linear
from .maps import Activation, depthwise_conv, gate, merge_scales
from .plain import upsample
from .routes import ROUTES, Route

__all__ = [
    "BACKENDS",
    "ROUTES",
    "Activation",
    "Route",
    "depthwise_conv",
    "gate",
    "linear",
    "merge_scales",
    "scan2d",
    "selective_scan",
    "upsample",
    "use_backend",
]
