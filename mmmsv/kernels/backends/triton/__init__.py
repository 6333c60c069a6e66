"""Backend ``triton``: NVIDIA GPUs from compute capability 7.5 on; no compiler is needed at installation."""

from ...dispatch import Backend, Kernel, register
from . import block, conv, fused, norm, scan

register(
    Backend(
        "triton",
        scan.why_not,
        automatic_for=("cuda",),
        priority=20,
        selective_scan=Kernel(scan.selective_scan, scan.selective_scan_backward),
        scan2d=Kernel(scan.scan2d, scan.scan2d_backward),
        depthwise_conv=Kernel(conv.depthwise_conv, conv.depthwise_conv_backward),
        gate=Kernel(fused.gate, fused.gate_backward),
        layer_norm=Kernel(norm.layer_norm, norm.layer_norm_backward, yields_to_compilers=True),
        merge_scales=Kernel(fused.merge_scales, fused.merge_scales_backward),
        blocks=block.compute,
    )
)
