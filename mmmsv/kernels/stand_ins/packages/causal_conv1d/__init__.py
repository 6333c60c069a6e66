"""Stands in for causal-conv1d."""

from mmmsv.kernels.stand_ins import log

from .causal_conv1d_interface import causal_conv1d_fn as causal_conv1d_fn
from .causal_conv1d_interface import causal_conv1d_update as causal_conv1d_update

__version__ = "0+mmmsv"

log.log_once("causal_conv1d", "mmmsv.kernels.causal_conv1d")
