"""Load the network that a figure is of: an arch or a config, with a checkpoint or with random weights."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import numpy as np
import torch
from mmengine.config import Config
from mmengine.logging import print_log
from mmengine.registry import DATASETS
from mmengine.runner import CheckpointLoader
from torch import Tensor, nn

from mmmsv.messages import first_sentence, list_mismatches
from mmmsv.models.backbone import VisionMamba
from mmmsv.models.blocks import VSSBlock
from mmmsv.models.ms2d import Scan2D

from .flops import build_classifier, build_from_config, describe_image
from .photographs import Photograph
from .speed.models import MEAN, STD, build, full_name, short_name, stages_of, why_no_maps

_FAMILIES = ("MSVMamba", "VMamba")


@dataclass(frozen=True)
class Network:
    """A network in evaluation mode.

    Args:
        name: Of its arch or config.
        weights: What its weights are: ``'random weights'``, or the name of a checkpoint.
        model: A classifier, detector or segmentor with a ``backbone``, or a classifier of torchvision.
        lacks: Names of its weights that the checkpoint lacks, and that are random therefore.
        classes: Names of the classes that it tells apart, as far as the checkpoint or the config knows them.
    """

    name: str
    weights: str
    model: nn.Module
    lacks: Sequence[str] = ()
    classes: Sequence[str] = ()

    @property
    def title(self) -> str:
        """What a figure calls it: its name and its weights."""
        return f"{self.name}, {self.weights}"

    @property
    def backbone(self) -> VisionMamba:
        """The backbone.

        Raises:
            ValueError: It is none of this package's.
        """
        backbone = getattr(self.model, "backbone", None)
        if not isinstance(backbone, VisionMamba):
            what = type(self.model if backbone is None else backbone).__name__
            raise ValueError(f"{self.name} has no scan: it is a {what}; give an arch or a config of MSVMamba or VMamba")
        return backbone

    def find_body(self) -> nn.Module:
        """Return the part that returns maps: the backbone, or the stages of a classifier of torchvision.

        Raises:
            ValueError: These stages are not known.
        """
        backbone = getattr(self.model, "backbone", None)
        if backbone is None and (reason := why_no_maps(full_name(self.name))):
            raise ValueError(reason)
        return stages_of(self.model) if backbone is None else backbone

    def last_map(self, image: Tensor) -> Tensor:
        """Compute the map that the backbone returns last.

        Args:
            image: ``(B, 3, H, W)``, as :meth:`prepare` makes it.

        Returns:
            ``(B, C, h, w)``.

        Raises:
            ValueError: The stages of this classifier of torchvision are not known, or the backbone returns no map.
        """
        body = self.find_body()
        last = body(image)[-1]
        if not isinstance(last, Tensor) or last.dim() != 4:
            raise ValueError(
                f"the backbone of {self.name}, a {type(body).__name__}, returns no map (B, C, h, w); give a "
                "config whose backbone does, as those of detectors do"
            )
        return last

    @contextmanager
    def frozen(self) -> Iterator[None]:
        """Have no gradients computed for the weights for as long as this lasts, which spares their memory."""
        trained = [weight for weight in self.model.parameters() if weight.requires_grad]
        for weight in trained:
            weight.requires_grad_(False)
        try:
            yield
        finally:
            for weight in trained:
                weight.requires_grad_(True)

    def block(self, stage: int, block: int) -> VSSBlock:
        """Return a block of the backbone.

        Args:
            stage: From 0 on; negative ones count from the last.
            block: The same, within the stage.

        Raises:
            ValueError: There is no such stage or block, or the network has no scan.
        """
        depths = self.backbone.arch.depths
        if not -len(depths) <= stage < len(depths):
            raise ValueError(
                f"{self.name} has no stage {stage}: it has {len(depths)}, so give 0 to {len(depths) - 1}, or -1 for "
                "the last"
            )
        if not -depths[stage] <= block < depths[stage]:
            raise ValueError(
                f"stage {stage % len(depths)} of {self.name} has no block {block}: it has {depths[stage]}, so give 0 "
                f"to {depths[stage] - 1}, or -1 for the last"
            )
        # pyrefly: ignore[bad-index]: a stage's blocks are a ModuleList
        return cast(VSSBlock, self.backbone.stages[stage].blocks[block])

    def scan(self, stage: int, block: int) -> Scan2D:
        """Return the 2-D scan of a block; errors as of :meth:`block`."""
        return self.block(stage, block).scan

    def describe_block(self, stage: int, block: int) -> str:
        """Say which block of the network that is, counted from 0: for titles; errors as of :meth:`block`."""
        self.block(stage, block)
        depths = self.backbone.arch.depths
        return f"{self.title}, stage {stage % len(depths)}, block {block % depths[stage]}"

    @torch.no_grad()
    def run_stages(self, image: Tensor) -> Iterator[Tensor]:
        """Run the backbone stage by stage, whichever of them the task takes.

        Args:
            image: ``(B, 3, H, W)``, as :meth:`prepare` makes it.

        Yields:
            The map that leaves each stage, ``(B, h, w, C)``, before an output norm.

        Raises:
            ValueError: The network has no such backbone, or computes numbers that are not finite.
        """
        x = self.backbone.stem(image)
        for i, stage in enumerate(self.backbone.stages):
            x = stage(x)
            if not x.isfinite().all():
                raise ValueError(f"stage {i} of {self.title} computes infinite numbers or NaN; give other weights")
            yield x

    def prepare(self, photographs: Sequence[Photograph]) -> Tensor:
        """Normalise photographs of one size as the network wants them; return ``(B, 3, H, W)``, float32."""
        rgb = torch.from_numpy(np.stack([photograph.pixels for photograph in photographs])).permute(0, 3, 1, 2)
        preprocessor = getattr(self.model, "data_preprocessor", None)
        if preprocessor is None:
            mean, std = (torch.tensor(values).view(3, 1, 1) for values in (MEAN, STD))
            return (rgb - mean) / std
        shape = photographs[0].shape
        samples = [describe_image(shape) for _ in photographs]
        # OpenMMLab's pipelines read photographs as BGR.
        return preprocessor({"inputs": list(rgb.flip(1)), "data_samples": samples}, False)["inputs"]


@torch.random.fork_rng(devices=())
def load_network(model: str, checkpoint: str | None = None) -> Network:
    """Build a network, and load its weights.

    Args:
        model: Path of a config of mmpretrain, mmdet or mmseg (``.py``), an arch such as ``'tiny'`` or
            ``'VMamba:v2_tiny_s1l8'``, which gets a classifier on top, a classifier of torchvision such as
            ``'resnet50'``, or ``'deit_small'``, mmpretrain's DeiT-S without its head.
        checkpoint: Path, URL, or ``authors://NAME``; with an arch, the weights of a backbone or of a classifier; with a
            config, of the whole model. None leaves random weights, the same in each call. The
            state of torch's random generator stays as it is.

    Raises:
        ValueError: There is no such model, or the checkpoint cannot be read or does not fit; the message says which.
    """
    weights, classes = (None, ()) if checkpoint is None else _read(checkpoint)
    torch.default_generator.manual_seed(0)
    if Path(model).suffix == ".py":
        network = build_from_config(model)[0]
        name = Path(model).stem
        classes = classes or _classes_of_config(model)
    else:
        name = full_name(model)
        family, _, arch = name.partition(":")
        if family in _FAMILIES:
            weights = None if weights is None else _as_classifier(weights)
            head = {} if weights is None else weights
            number = head["head.weight"].shape[0] if "head.weight" in head else 1000
            network = build_classifier(family, arch, number)
        elif family == "mmpretrain":
            weights = None if weights is None else _as_backbone(weights)
            network = build(name, maps=True)
        else:
            network = build(name, maps=False)
        name = short_name(name)
    if checkpoint is None or weights is None:
        return Network(name, "random weights", network.eval(), classes=classes)
    lacks = _load(network, weights, name, checkpoint)
    return Network(name, Path(checkpoint).name, network.eval(), lacks, classes)


def _read(checkpoint: str) -> tuple[dict[str, Tensor], Sequence[str]]:
    """Return the weights of a checkpoint, and the names of the classes that it is of."""
    try:
        content = CheckpointLoader.load_checkpoint(checkpoint, "cpu")
    except Exception as error:
        # torch and MMEngine raise anything on a file that is missing, damaged or something else.
        raise ValueError(f"the checkpoint {checkpoint} cannot be read ({first_sentence(error)})") from error
    weights = content.get("state_dict", content) if isinstance(content, Mapping) else {}
    tensors = {name: value for name, value in weights.items() if isinstance(value, Tensor)}
    if not tensors:
        raise ValueError(f"the checkpoint {checkpoint} holds no weights; give one that MMEngine or torch.save wrote")
    meta = content.get("meta")
    return tensors, _class_names(meta.get("dataset_meta") if isinstance(meta, Mapping) else None)


def _classes_of_config(path: str) -> Sequence[str]:
    """Return the names of the classes that a config tests on: its own, or those of the data set's type."""
    cfg = Config.fromfile(path)
    dataset = (cfg.get("test_dataloader") or {}).get("dataset", {})
    kind = dataset.get("type")
    if isinstance(kind, str):
        with DATASETS.switch_scope_and_registry(cfg.default_scope) as registry:
            kind = registry.get(kind)
    return _class_names(dataset.get("metainfo")) or _class_names(getattr(kind, "METAINFO", None))


def _class_names(metainfo: object) -> Sequence[str]:
    names = metainfo.get("classes") if isinstance(metainfo, Mapping) else None
    return tuple(map(str, names)) if isinstance(names, (list, tuple)) else ()


def _as_classifier(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Give the weights of a backbone or of a model around it the names of :class:`~mmmsv.analysis.flops.Classifier`."""
    if not any(name.startswith("backbone.") for name in weights):
        return {f"backbone.{name}": value for name, value in weights.items()}
    ours = {name: value for name, value in weights.items() if name.startswith("backbone.")}
    head = {
        part: name for part in ("weight", "bias") for name in (f"head.{part}", f"head.fc.{part}") if name in weights
    }
    return {**ours, **{f"head.{part}": weights[name] for part, name in head.items()}}


def _as_backbone(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Leave of the weights of a backbone, or of a model around it, those of the backbone, named as in such a model."""
    return {name: value for name, value in _as_classifier(weights).items() if name.startswith("backbone.")}


def _load(network: nn.Module, weights: Mapping[str, Tensor], name: str, checkpoint: str) -> list[str]:
    """Load weights; return the names of those that are missing and stay as they are."""
    expected = network.state_dict()
    # Which stages have an output norm depends on the task; the classifier of an arch is not always in a file.
    optional = ("backbone.out_norms.", "head.") if hasattr(network, "head") and "head.weight" in expected else ()
    missing = [key for key in expected if key not in weights and key.startswith(optional or ("backbone.out_norms.",))]
    given = {key: value for key, value in weights.items() if key in expected or not key.startswith("backbone.out_norm")}
    wanted = {key: value for key, value in expected.items() if key not in missing}
    if mismatches := list_mismatches(wanted, given):
        raise ValueError(
            f"the checkpoint {checkpoint} does not fit {name}: {'; '.join(mismatches)}. Give the model that it is of"
        )
    network.load_state_dict({**expected, **given})
    if missing:
        print_log(f"{checkpoint} lacks {', '.join(missing)}: random weights stay there", "current")
    return missing
