"""Stands in for the module of this name of causal-conv1d."""

from mmmsv.kernels.causal_conv1d import causal_conv1d_fn, causal_conv1d_update

__all__ = ["causal_conv1d_fn", "causal_conv1d_ref", "causal_conv1d_update", "causal_conv1d_update_ref"]

causal_conv1d_ref, causal_conv1d_update_ref = causal_conv1d_fn, causal_conv1d_update
