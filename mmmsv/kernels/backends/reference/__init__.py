"""Backend ``reference``: the oracle that the others are tested against. Slow."""

from torch.nn.functional import linear

from ...dispatch import Backend, register
from ..torch import fused, sequences, unrolled
from . import scan

register(
    Backend(
        "reference",
        why_not=lambda device: None,
        priority=-1,
        selective_scan=sequences.kernel(scan.forward, scan.backward),
        scan2d=unrolled.kernel(scan.forward, scan.backward),
        depthwise_conv=fused.depthwise_conv,
        gate=fused.gate,
        merge_scales=fused.merge_scales,
        linear=linear,
    )
)
