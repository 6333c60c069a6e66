"""The selective scan (S6), the ops around it, and their backends; imports torch, never a package of OpenMMLab."""

# The link in the root of a checkout, found by what looks for the package of that name.
if __name__ == "kernels":
    raise ImportError("this folder is mmmsv.kernels; the package 'kernels' is not installed")

from . import backends, flops, whole_block  # noqa: F401  which registers the first two
from .arguments import Activation
from .backends.cpu.memory import empty_cache
from .bypass import is_transformed
from .dispatch import BACKENDS, use_backend
from .fused import depthwise_conv, gate, layer_norm, merge_scales, upsample
from .linear import linear
from .readers import branch_off, read_twice
from .routes import ROUTES, Route
from .scan import scan2d, selective_scan
from .selection import Selection

__all__ = [
    "BACKENDS",
    "ROUTES",
    "Activation",
    "Route",
    "Selection",
    "branch_off",
    "depthwise_conv",
    "empty_cache",
    "gate",
    "is_transformed",
    "layer_norm",
    "linear",
    "merge_scales",
    "read_twice",
    "scan2d",
    "selective_scan",
    "upsample",
    "use_backend",
    "whole_block",
]
