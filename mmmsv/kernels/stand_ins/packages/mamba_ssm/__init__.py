"""Stands in for mamba-ssm, without its blocks and models."""

from typing import NoReturn

from mmmsv.kernels.stand_ins import log

from .ops.selective_scan_interface import mamba_inner_fn as mamba_inner_fn
from .ops.selective_scan_interface import selective_scan_fn as selective_scan_fn
from .ops.triton.selective_state_update import selective_state_update as selective_state_update

# Older than any release: what asks for Mamba 2 does not find it here.
__version__ = "0+mmmsv"
_MODELS = ("Mamba", "Mamba2", "Mamba3", "MambaLMHeadModel")

log.log_once("mamba_ssm", "mmmsv.kernels.mamba")


def __getattr__(name: str) -> NoReturn:
    if name in _MODELS:
        raise ImportError(
            f"mmmsv.kernels stands in for the functions of mamba_ssm, and has no {name}; install mamba-ssm without its "
            "kernel, which alone is stood in for then: MAMBA_SKIP_CUDA_BUILD=TRUE MAMBA_FORCE_BUILD=TRUE pip install "
            "--no-build-isolation --no-deps mamba-ssm"
        )
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
