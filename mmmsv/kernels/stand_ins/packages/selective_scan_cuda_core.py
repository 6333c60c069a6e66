"""Stands in for VMamba's compiled module of this name."""

from mmmsv.kernels.stand_ins import log
from mmmsv.kernels.stand_ins.vmamba import bwd, fwd

__all__ = ["bwd", "fwd"]

log.log_once("selective_scan_cuda_core", "mmmsv.kernels.selective_scan")
