"""Stands in for the module of this name of mamba-ssm."""

from mmmsv.kernels.mamba import selective_state_update

__all__ = ["selective_state_update", "selective_state_update_ref"]

selective_state_update_ref = selective_state_update
