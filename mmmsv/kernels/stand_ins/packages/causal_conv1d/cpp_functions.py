"""Stands in for the module of this name of causal-conv1d from 1.5 on, which mamba-ssm calls."""

from mmmsv.kernels.stand_ins.convolution import backward as causal_conv1d_bwd_function
from mmmsv.kernels.stand_ins.convolution import forward as causal_conv1d_fwd_function
from mmmsv.kernels.stand_ins.convolution import update as causal_conv1d_update_function

__all__ = ["causal_conv1d_bwd_function", "causal_conv1d_fwd_function", "causal_conv1d_update_function"]
