"""The ops, as torch and the backends know them."""

from .arguments import DepthwiseConv, Gate, Linear, MergeScales, Scan2d
from .registration import Op

scan2d = Op("scan2d", Scan2d, lambda backend: backend.scan2d)
depthwise_conv = Op("depthwise_conv", DepthwiseConv, lambda backend: backend.depthwise_conv)
gate = Op("gate", Gate, lambda backend: backend.gate)
merge_scales = Op("merge_scales", MergeScales, lambda backend: backend.merge_scales)
linear = Op("linear", Linear, lambda backend: backend.linear)
