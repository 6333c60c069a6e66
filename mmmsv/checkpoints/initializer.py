"""Initialise weights from the authors' checkpoints."""

import os
from collections.abc import Collection, Mapping

from mmengine.logging import print_log
from mmengine.model import BaseModule, update_init_info
from torch import Tensor, nn

from mmmsv.models.backbone import VisionMamba
from mmmsv.models.input_channels import FIRST_WEIGHTS, adapt_in_channels
from mmmsv.registry import WEIGHT_INITIALIZERS

from .infer_arch import name_of
from .matching import match, name_of_first
from .reading import read_checkpoint, weights_of
from .releases import release_of, to_current


@WEIGHT_INITIALIZERS.register_module()
class AuthorsCheckpoint:
    """Initialise a backbone, or a model with one, from a file of the authors of MSVMamba or VMamba, as they publish it.

    ``init_cfg=dict(type='mmmsv.AuthorsCheckpoint', checkpoint='authors://NAME')``, of the backbone or of the whole
    model.

    Files of classifiers, detectors and segmentors are understood: ``{"model": ...}``, ``{"model_ema": ...}`` (which is
    preferred), ``{"state_dict": {"backbone....": ...}}``, or the weights alone; with the current names, those of
    VMamba's first release (January 2024), or those of its version in one file. Each tensor of the backbone is used, or
    nothing is loaded. What may be left out, and is reported in the line that is logged:

    - in the file: a classification head that has no counterpart of its size in the model, and what is not of the
      backbone when ``init_cfg`` is that of the backbone;
    - in the model: with a classifier's file, the output norms of the stages before the last, and what is not the
      classification head.

    In a list of initialisations it comes last.

    Args:
        checkpoint: ``authors://NAME``, for the file that the authors released for the config of that name; or the path
            or URL of a file.

    Raises:
        TypeError: The model has no such backbone, or ``checkpoint`` is neither a path nor a URL.
        ValueError: The file cannot be read, or does not fit; the message says in one line what is missing, unexpected
            or of another shape, and which arch it is of. The model is as it was.
    """

    def __init__(self, checkpoint: str | os.PathLike) -> None:
        self.checkpoint = checkpoint

    def __call__(self, module: nn.Module) -> None:
        _check_order(module)
        report = load_authors(module, self.checkpoint)
        print_log(f"AuthorsCheckpoint: {report}", "current")
        if hasattr(module, "_params_init_info"):  # while MMEngine keeps account of what initialised which weight
            update_init_info(module, f"{type(self).__name__}: load from {self.checkpoint}")


def load_authors(module: nn.Module, source: str | os.PathLike) -> str:
    """Load the authors' weights into a backbone or a model with one; see :class:`AuthorsCheckpoint`.

    Returns:
        What was loaded, in one line: file, arch, number of tensors, and what was left out.

    Raises:
        TypeError: The model has no such backbone, or ``source`` is neither a path nor a URL.
        ValueError: The file cannot be read, or does not fit.
    """
    backbone = module if isinstance(module, VisionMamba) else getattr(module, "backbone", None)
    if not isinstance(backbone, VisionMamba):
        raise TypeError(
            f"AuthorsCheckpoint initialises MSVMamba, VMamba or a model with one as its backbone, not a "
            f"{type(module).__name__}{'' if backbone is None else f' with a {type(backbone).__name__}'}"
        )
    prefix = "backbone." if module is backbone else ""
    ours = {prefix + name: tensor for name, tensor in module.state_dict().items()}
    weights, part = weights_of(read_checkpoint(source), source)
    release = release_of(weights)
    weights = to_current(weights, release)
    own, adapted = ours.get(f"backbone.{FIRST_WEIGHTS[backbone.arch.stem]}"), None
    if own is not None:
        weights, adapted = adapt_in_channels(weights, name_of_first(weights), own, backbone.adapt_in_channels)
    matched = match(weights, ours, backbone.arch, source, release)
    _check_values(ours, matched.weights, source)
    module.load_state_dict({name.removeprefix(prefix): value for name, value in {**ours, **matched.weights}.items()})
    _spare_from_initialisation(module, backbone, {name.removeprefix(prefix) for name in matched.weights})
    summary = f"{source} ({part}): {name_of(backbone.arch)}, {matched.summary()}"
    return f"{summary}; {adapted}" if adapted else summary


def _check_order(module: nn.Module) -> None:
    """Refuse an initialisation after this one, which would overwrite what was loaded."""
    configs = getattr(module, "init_cfg", None)
    last = configs[-1]["type"] if isinstance(configs, list) and configs else AuthorsCheckpoint
    if (WEIGHT_INITIALIZERS.get(last) if isinstance(last, str) else last) is not AuthorsCheckpoint:
        raise ValueError(
            f"init_cfg of {type(module).__name__}: AuthorsCheckpoint must be the last entry, since one after it "
            "would overwrite the weights"
        )


def _check_values(ours: Mapping[str, Tensor], weights: Mapping[str, Tensor], source: str | os.PathLike) -> None:
    for name, value in weights.items():
        if ours[name].is_meta:
            raise ValueError(f"{name} of the model is on the meta device and has no memory: build it on a real one")
        if not value.to(ours[name].dtype).isfinite().all():
            raise ValueError(f"{source} holds values in {name} that are too large for {ours[name].dtype}")


def _spare_from_initialisation(module: nn.Module, backbone: VisionMamba, loaded: Collection[str]) -> None:
    """Keep MMEngine from initialising what was loaded: after a module's own init_cfg come those of its children."""
    for prefix, child in module.named_modules():
        names = [f"{prefix}.{name}" for name, _ in child.named_parameters()] if prefix else []
        whole = bool(names) and all(name in loaded for name in names)
        if isinstance(child, BaseModule) and prefix and (child is backbone or whole):
            child.is_init = True
