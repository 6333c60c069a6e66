"""The selective scan (S6), the ops around it, and their backends; imports torch, never a package of OpenMMLab."""

from pathlib import Path

# The link in the root of a checkout, found by what looks for the package of that name.
if __name__ == "kernels":
    raise ImportError("this folder is mmmsv.kernels; the package 'kernels' is not installed")
if not Path(__file__).parent.is_dir():
    raise ImportError(
        f"mmmsv does not run out of an archive ({Path(__file__).parents[2]}), since its C++ library and configs must "
        "be files: install it with pip, or unpack it"
    )
try:
    __file__.encode()
except UnicodeEncodeError as error:
    raise ImportError(
        f"mmmsv lies in a folder whose name Python cannot decode in this locale ({__file__!a}), and torch registers no "
        "ops from there: set PYTHONUTF8=1, or a locale with UTF-8"
    ) from error

from . import backends, flops, whole_block  # noqa: F401  which registers the first two
from .arguments import Activation
from .backends.cpu.memory import empty_cache
from .bypass import is_transformed, share_memory
from .dispatch import BACKENDS, use_backend
from .fused import depthwise_conv, gate, layer_norm, merge_scales, upsample
from .linear import linear
from .readers import branch_off, read_twice
from .routes import ROUTES, Route
from .scan import scan2d, selective_scan
from .selection import Selection
from .stand_ins import is_asked_for, stand_in
from .vmamba import cross_merge, cross_scan

__all__ = [
    "BACKENDS",
    "ROUTES",
    "Activation",
    "Route",
    "Selection",
    "branch_off",
    "cross_merge",
    "cross_scan",
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
    "share_memory",
    "stand_in",
    "upsample",
    "use_backend",
    "whole_block",
]

if is_asked_for():
    stand_in()
