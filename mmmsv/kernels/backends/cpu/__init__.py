"""Backend ``cpu``: C++ with SIMD and OpenMP, in ``csrc/``, compiled when mmmsv is installed."""

from ...dispatch import Backend, Kernel, register
from . import block, downsampling, fused, linear, scan, sequences
from .library import choices, why_not

register(
    Backend(
        "cpu",
        why_not,
        automatic_for=("cpu",),
        priority=10,
        selective_scan=Kernel(sequences.forward, sequences.backward),
        scan2d=Kernel(scan.forward, scan.backward),
        depthwise_conv=Kernel(fused.depthwise_conv, fused.depthwise_conv_backward),
        gate=Kernel(fused.gate, fused.gate_backward),
        merge_scales=Kernel(fused.merge_scales, fused.merge_scales_backward),
        linear=linear.linear,
        blocks=block.compute,
        downsampling=downsampling.compute,
        choices=choices,
    )
)
