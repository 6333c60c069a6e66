"""Build the models that are measured by name: our archs, and torchvision's classifiers as baselines."""

from collections.abc import Sequence

import torchvision
from torch import Tensor, nn
from torchvision.models import ConvNeXt, SwinTransformer

from ..flops import BACKBONES, build_classifier

BASELINES = ("convnext_tiny", "swin_t", "resnet50")
_OURS, _TORCHVISION = next(iter(BACKBONES)), "torchvision"
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
    family, _, arch = name.rpartition(":")
    family = family or (_OURS if arch in archs[_OURS] else _TORCHVISION)
    if family not in archs:
        raise ValueError(f"there is no {family!r} to take {name!r} from; choose {', '.join(archs)}")
    if arch not in archs[family]:
        raise ValueError(
            f"there is no model {name!r}; choose one of {', '.join(ours)}, or a classifier of torchvision such as "
            f"'resnet50' (not {' or '.join(sorted(_WITH_AUXILIARY_HEADS))}, which train otherwise)"
        )
    return f"{family}:{arch}"


def short_name(name: str) -> str:
    """Return the name as tables show it: torchvision's need no family."""
    return name.removeprefix(f"{_TORCHVISION}:").replace(":", " ")


def why_no_maps(name: str) -> str | None:
    """Say in one sentence why the four stages of a model are not known, if so."""
    family, _, arch = name.partition(":")
    if family in BACKBONES or arch.startswith((*_FEATURES, *_LAYERS)):
        return None
    return f"the four stages of {arch} are not known here, only those of torchvision's ResNets, ConvNeXts and Swins"


def build(name: str, maps: bool) -> nn.Module:
    """Build a model with random weights.

    Args:
        name: Its full name.
        maps: Whether it returns the maps of its four stages, instead of the logits of 1000 classes.
    """
    family, _, arch = name.partition(":")
    if family in BACKBONES:
        return BACKBONES[family](arch) if maps else build_classifier(family, arch)
    model = torchvision.models.get_model(arch, weights=None)
    return stages_of(model) if maps else model


def stages_of(model: nn.Module) -> Stages:
    """Return the four stages of a classifier of torchvision for which :func:`why_no_maps` knows no reason."""
    if isinstance(model, (ConvNeXt, SwinTransformer)):
        # Stem and stage 0, then a downsampling and a stage three times.
        return Stages([model.features[i : i + 2] for i in range(0, 8, 2)], isinstance(model, SwinTransformer))
    stem = [model.get_submodule(name) for name in ("conv1", "bn1", "relu", "maxpool")]
    first, *others = [model.get_submodule(f"layer{i}") for i in range(1, 5)]
    return Stages([nn.Sequential(*stem, first), *others], False)
