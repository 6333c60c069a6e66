"""The ops, as torch and the backends know them."""

from .arguments import DepthwiseConv, Gate, LayerNorm, Linear, MergeScales, Scan2d, SelectiveScan
from .registration import Op

selective_scan = Op("selective_scan", SelectiveScan, 5, lambda backend: backend.selective_scan, ("y", "last"))
scan2d = Op("scan2d", Scan2d, 4, lambda backend: backend.scan2d)
depthwise_conv = Op("depthwise_conv", DepthwiseConv, 1, lambda backend: backend.depthwise_conv, adds=True)
gate = Op("gate", Gate, 2, lambda backend: backend.gate)
merge_scales = Op("merge_scales", MergeScales, 2, lambda backend: backend.merge_scales, ("y", "mean"))
layer_norm = Op("layer_norm", LayerNorm, 1, lambda backend: backend.layer_norm, adds=True)
linear = Op("linear", Linear, 1, lambda backend: backend.linear)
