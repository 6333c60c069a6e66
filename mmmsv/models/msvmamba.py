"""MSVMamba, multi-scale vision Mamba: the published archs."""

from dataclasses import replace
from typing import ClassVar

from mmmsv.registry import MODELS

from .arch import Arch, BlockArch
from .backbone import VisionMamba

_ARXIV = (BlockArch(),) * 4
_NEURIPS = BlockArch(fusion="norm_last", ssm_ratio=1.0, gate=False, ffn_ratio=4.0, ffn_norm="post")
_V3_TINY = Arch((96, 192, 384, 768), (2, 2, 9, 2), (_NEURIPS,) * 4, stem="conv", downsample="conv")
_V3_BASE = replace(_V3_TINY, embed_dims=(128, 256, 512, 1024), depths=(2, 3, 20, 2))


@MODELS.register_module()
class MSVMamba(VisionMamba):
    """MSVMamba; options are those of :class:`~mmmsv.models.backbone.VisionMamba`.

    ``nano``, ``micro``, ``tiny`` are those of the arXiv version; ``v3_tiny``, ``v3_small``, ``v3_base`` those of the
    NeurIPS version, under the name that the authors' release gives them, with ``v3_base`` gated as in the release
    and ``v3_base_ungated`` as in the authors' slides. The published classifiers were trained with
    ``drop_path_rate=0.2``, but ``v3_small`` with 0.4 and ``v3_base`` with 0.5.

    Source:
        Shi, Dong, Xu: Multi-Scale VMamba: Hierarchy in Hierarchy Visual State Space Model, arXiv 2405.14174,
        NeurIPS 2024.
    """

    archs: ClassVar[dict[str, Arch]] = {
        "nano": Arch((48, 96, 192, 384), (1, 2, 5, 2), _ARXIV),
        "micro": Arch((64, 128, 256, 512), (1, 2, 5, 2), _ARXIV),
        "tiny": Arch((96, 192, 384, 768), (1, 2, 9, 2), _ARXIV),
        "v3_tiny": _V3_TINY,
        "v3_small": replace(_V3_TINY, depths=(2, 3, 20, 2)),
        "v3_base": replace(_V3_BASE, depths=(2, 4, 18, 2), blocks=(replace(_NEURIPS, gate=True),) * 4),
        "v3_base_ungated": _V3_BASE,
    }
