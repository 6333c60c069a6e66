"""The selective scan (S6) and its backends; imports torch, never a package of OpenMMLab."""

from .backends.torch.fused import upsample
from .backends.torch.linear import linear
from .dispatch import BACKENDS, use_backend
from .fused import Activation, depthwise_conv, gate, merge_scales
from .routes import ROUTES, Route
from .scan import scan2d, selective_scan

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
