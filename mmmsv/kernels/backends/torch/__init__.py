"""Backend ``torch``: every op in PyTorch, wherever PyTorch runs."""

from ...dispatch import Backend, register
from . import fused, linear, scan, sequences, unrolled

register(
    Backend(
        "torch",
        why_not=lambda device: None,
        automatic_for=None,
        selective_scan=sequences.kernel(scan.forward, scan.backward),
        scan2d=unrolled.kernel(scan.forward, scan.backward),
        depthwise_conv=fused.depthwise_conv,
        gate=fused.gate,
        merge_scales=fused.merge_scales,
        layer_norm=fused.layer_norm,
        linear=linear.linear,
    )
)
