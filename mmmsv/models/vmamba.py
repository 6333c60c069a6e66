"""VMamba, the ancestor of MSVMamba: the published archs."""

from dataclasses import replace
from typing import ClassVar

from mmmsv.registry import MODELS

from .arch import Arch, BlockArch
from .backbone import VisionMamba

_SS2D = BlockArch(full_routes=("row", "col", "row_rev", "col_rev"), half_routes=(), se=False)
_ARXIV = (replace(_SS2D, state_size=16, ffn="none"),) * 4


def _v2(ssm_ratio: float) -> tuple[BlockArch, ...]:
    return (replace(_SS2D, ssm_ratio=ssm_ratio, gate=False, conv_bias=False, ffn="mlp", ffn_ratio=4.0),) * 4


@MODELS.register_module()
class VMamba(VisionMamba):
    """VMamba; options are those of :class:`~mmmsv.models.backbone.VisionMamba`.

    ``tiny``, ``small``, ``base`` are those of the first arXiv version (state size 16, no FFN); the others, ``v2_*``,
    those of the release of 2024, named after their ssm_ratio (s) and the depth of their third stage (l). The published
    classifiers of the first version were trained with ``drop_path_rate`` 0.1, 0.3 and 0.6 (tiny, small, base), as their
    files are named; those of 2024 with 0.2, 0.3 and 0.6, which is inferred for ``v2_tiny_s2l5``, ``v2_small_s1l20`` and
    ``v2_base_s1l20`` from the other arch of their size.

    Source:
        Liu et al.: VMamba: Visual State Space Model, arXiv 2401.10166.
    """

    archs: ClassVar[dict[str, Arch]] = {
        "tiny": Arch((96, 192, 384, 768), (2, 2, 9, 2), _ARXIV),
        "small": Arch((96, 192, 384, 768), (2, 2, 27, 2), _ARXIV),
        "base": Arch((128, 256, 512, 1024), (2, 2, 27, 2), _ARXIV),
        "v2_tiny_s1l8": Arch((96, 192, 384, 768), (2, 2, 8, 2), _v2(1.0), stem="conv", downsample="conv"),
        "v2_tiny_s2l5": Arch((96, 192, 384, 768), (2, 2, 5, 2), _v2(2.0), stem="conv", downsample="conv"),
        "v2_small_s2l15": Arch((96, 192, 384, 768), (2, 2, 15, 2), _v2(2.0), stem="conv", downsample="conv"),
        "v2_small_s1l20": Arch((96, 192, 384, 768), (2, 2, 20, 2), _v2(1.0), stem="conv", downsample="conv"),
        "v2_base_s2l15": Arch((128, 256, 512, 1024), (2, 2, 15, 2), _v2(2.0), stem="conv", downsample="conv"),
        "v2_base_s1l20": Arch((128, 256, 512, 1024), (2, 2, 20, 2), _v2(1.0), stem="conv", downsample="conv"),
    }
