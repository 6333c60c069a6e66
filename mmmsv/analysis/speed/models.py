"""Build the models that are measured by name: our archs, and torchvision's classifiers and DeiT-S as baselines."""

from collections.abc import Sequence

import torchvision
from torch import Tensor, nn
from torchvision.models import ConvNeXt, SwinTransformer

from ..flops import BACKBONES, build_classifier, build_openmmlab

# Of ImageNet, for RGB in 0..255: what networks without a config take.
MEAN, STD = (123.675, 116.28, 103.53), (58.395, 57.12, 57.375)
BASELINES = ("convnext_tiny", "swin_t", "resnet50")
_OURS, _TORCHVISION, _MMPRETRAIN = next(iter(BACKBONES)), "torchvision", "mmpretrain"
_DEIT_SMALL = "deit_small"
_VISION_TRANSFORMERS = ("vit_", _DEIT_SMALL)
# They return several logits in training.
_WITH_AUXILIARY_HEADS = {"googlenet", "inception_v3"}
_FEATURES = ("convnext_", "swin_")
_LAYERS = ("resnet", "resnext", "wide_resnet")


class Stages(nn.Module):
    """Return the maps of a baseline's four stages, ``(B, C, H, W)`` and contiguous, as a detector takes them.

    Args:
        stages: The parts, in their order.
        channels_last: Whether their maps are ``(B, H, W, C)``.
    """

    def __init__(self, stages: Sequence[nn.Module], channels_last: bool) -> None:
        super().__init__()
        self.stages = nn.ModuleList(stages)
        self.channels_last = channels_last

    def forward(self, image: Tensor) -> tuple[Tensor, ...]:
        """Return the map of each stage."""
        x, maps = image, []
        for stage in self.stages:
            x = stage(x)
            maps.append((x.permute(0, 3, 1, 2) if self.channels_last else x).contiguous())
        return tuple(maps)


def full_name(name: str) -> str:
    """Complete a name: ``tiny`` is ``MSVMamba:tiny``, ``resnet50`` is ``torchvision:resnet50``.

    Raises:
        ValueError: There is no such model.
    """
    archs = {family: [*backbone.archs] for family, backbone in BACKBONES.items()}
    ours = [f"{family}:{arch}".removeprefix(f"{_OURS}:") for family, its in archs.items() for arch in its]
    archs[_TORCHVISION] = sorted({*torchvision.models.list_models(torchvision.models)} - _WITH_AUXILIARY_HEADS)
    archs[_MMPRETRAIN] = [_DEIT_SMALL]
    family, _, arch = name.rpartition(":")
    family = family or next((one for one in (_OURS, _MMPRETRAIN) if arch in archs[one]), _TORCHVISION)
    if family not in archs:
        raise ValueError(f"there is no {family!r} to take {name!r} from; choose {', '.join(archs)}")
    if arch not in archs[family]:
        raise ValueError(
            f"there is no model {name!r}; choose one of {', '.join((*ours, _DEIT_SMALL))}, or a classifier of "
            f"torchvision such as 'resnet50' (not {' or '.join(sorted(_WITH_AUXILIARY_HEADS))}, which train otherwise)"
        )
    return f"{family}:{arch}"


def short_name(name: str) -> str:
    """Return the name as tables show it: baselines need no family."""
    return name.removeprefix(f"{_TORCHVISION}:").removeprefix(f"{_MMPRETRAIN}:").replace(":", " ")


def why_no_maps(name: str) -> str | None:
    """Say in one sentence why the four stages of a model are not known, if so."""
    family, _, arch = name.partition(":")
    if family in BACKBONES or arch.startswith((*_FEATURES, *_LAYERS)):
        return None
    return f"the four stages of {arch} are not known here, only those of torchvision's ResNets, ConvNeXts and Swins"


def depends_on_size(name: str) -> bool:
    """Return whether a model is made for one size of images, as vision transformers are."""
    return name.partition(":")[2].startswith(_VISION_TRANSFORMERS)


def build(name: str, maps: bool, size: tuple[int, int] = (224, 224)) -> nn.Module:
    """Build a model with random weights.

    Args:
        name: Its full name.
        maps: Whether it returns the maps of its four stages, instead of the logits of 1000 classes.
        size: (H, W) of the images, which vision transformers are made for; the others take any.

    Raises:
        ValueError: It is a vision transformer, and cannot be made for this size; or what makes it is not installed.
    """
    family, _, arch = name.partition(":")
    if family in BACKBONES:
        return BACKBONES[family](arch) if maps else build_classifier(family, arch)
    if family == _MMPRETRAIN:
        return build_deit_small(size, maps)
    if depends_on_size(name):
        return _build_vision_transformer(arch, size)
    model = torchvision.models.get_model(arch, weights=None)
    return stages_of(model) if maps else model


def build_deit_small(size: tuple[int, int], maps: bool) -> nn.Module:
    """Build mmpretrain's DeiT-S with random weights.

    Args:
        size: (H, W) of the images; it interpolates the embedding of positions for others.
        maps: Whether it is without a head, and its ``backbone`` returns the map of the last layer.

    Source:
        Touvron et al.: Training data-efficient image transformers & distillation through attention, arXiv 2012.12877.
    """
    backbone = {"type": "VisionTransformer", "arch": "deit-small", "img_size": size, "patch_size": 16}
    head = {"type": "VisionTransformerClsHead", "num_classes": 1000, "in_channels": 384}
    parts = {"backbone": {**backbone, "out_type": "featmap"}} if maps else {"backbone": backbone, "head": head}
    preprocessor = {"mean": MEAN, "std": STD, "to_rgb": True}
    model = build_openmmlab(
        _MMPRETRAIN, {"type": "ImageClassifier", "data_preprocessor": preprocessor, **parts}, _DEIT_SMALL
    )
    model.init_weights()  # which else are zeros where positions are added
    return model


def _build_vision_transformer(arch: str, size: tuple[int, int]) -> nn.Module:
    """Build one of torchvision's."""
    height, width = size
    try:
        if height == width:
            return torchvision.models.get_model(arch, weights=None, image_size=height)
        reason = "these are not square"
    except AssertionError as error:
        reason = str(error)
    raise ValueError(f"{arch} cannot be made for images of {height} x {width} ({reason}); give another size")


def stages_of(model: nn.Module) -> Stages:
    """Return the four stages of a classifier of torchvision for which :func:`why_no_maps` knows no reason."""
    if isinstance(model, (ConvNeXt, SwinTransformer)):
        # Stem and stage 0, then a downsampling and a stage three times.
        return Stages([model.features[i : i + 2] for i in range(0, 8, 2)], isinstance(model, SwinTransformer))
    stem = [model.get_submodule(name) for name in ("conv1", "bn1", "relu", "maxpool")]
    first, *others = [model.get_submodule(f"layer{i}") for i in range(1, 5)]
    return Stages([nn.Sequential(*stem, first), *others], False)
