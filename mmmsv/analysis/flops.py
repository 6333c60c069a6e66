"""Count parameters and multiply-adds (MACs) of a model, in the authors' convention or as this code computes them.

The **published** convention is that of the authors of VMamba and MSVMamba: fvcore's, which is MMEngine's too, with a
formula for the scan, and without average pooling and interpolation to nearest neighbours, each of which fvcore counts
once for each number. It adds up different things, and calls the sum FLOPs, or MACs:

- 1 for a multiply-add of a convolution, a linear layer or attention; biases are free.
- ``9 L D N + L D`` operations, not halved, for the scan of a sequence of L tokens with D channels and N states
  (github.com/state-spaces/mamba, issue 110). The half-resolution routes of MS2D are one sequence, ``routes * L`` long.
- The layers that make dt, B and C of a token, and the step of dt, once for each route that visits the token, as in the
  official code. The layers here see a token once for each parameter set, and the scan makes the step; what the official
  code does beyond that is added to the layers. Of the published figures, 5.6 for VMamba-Tiny would be 5.4 without the
  steps, and 4.61 for MSVMamba-Tiny 4.58 without the repetition.
- Operations for each number that goes through a LayerNorm or GroupNorm (5) or a BatchNorm (2), or comes out of a
  bilinear interpolation (4): at most 2.5 % of a figure, and what it takes to meet its last digit.

So counted, the figures that the authors report are met to their last digit (docs/zoo.md has all of them), but for two:
Mask R-CNN with MSVMamba-Tiny is 265 G, and 252 G are reported, most likely those of the row above it in the paper's
table; the ablation + ConvFFN is 0.934 G, and 0.94 G are reported, which average pooling would make up for, at the
expense of another figure. docs/design.md, "Counting", has the reasons.

**Ours** is the number of multiply-adds that this code makes in layers and scans; a lone multiplication is one, too:

- Convolutions, linear layers and attention, as often as they run.
- The step, made in the scan and counted with the layers: ``L D R`` for each route, R being the rank of dt.
- The recurrence: ``(4 N + 2) L D`` for each route, that is step * A, drive * B, decay * h and C * h for each state, and
  drive = step * x and skip * x for each channel; one less without a skip weight. So do the backends ``cpu`` and
  ``triton``.

It leaves norms, interpolations, gates and squeeze-and-excitation's weighing out. Neither counts activations,
exponentials, sums or RoIAlign.
"""

import operator
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import astuple, dataclass
from importlib import import_module
from math import prod
from pathlib import Path
from typing import TypeAlias, TypeVar

import torch
from mmengine.config import Config
from mmengine.model import BaseModel
from mmengine.registry import MODELS, DefaultScope
from mmengine.structures import BaseDataElement, InstanceData
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils.flop_counter import FlopCounterMode

from mmmsv.kernels.flops import ScanSizes
from mmmsv.models import MSVMamba, VMamba

T = TypeVar("T")
BACKBONES = {backbone.__name__: backbone for backbone in (MSVMamba, VMamba)}
# What installs each library, in pyproject.toml.
_EXTRAS = {"mmpretrain": "cls", "mmdet": "det", "mmseg": "seg"}
# (H, W) of the image that figures are published for, by library.
SHAPES = {"mmpretrain": (224, 224), "mmdet": (800, 1280), "mmseg": (512, 2048)}


@dataclass(frozen=True)
class Macs:
    """Multiply-adds for one image, or what a convention takes for them.

    Args:
        layers: Of convolutions and linear layers, and of other products of matrices.
        scan: Of the recurrence.
        elementwise: Of norms and interpolations; 0 but in the published convention.
    """

    layers: int
    scan: int
    elementwise: int

    @property
    def total(self) -> int:
        """All of them."""
        return self.layers + self.scan + self.elementwise

    def __add__(self, other: "Macs") -> "Macs":
        return Macs(*map(operator.add, astuple(self), astuple(other)))


class Classifier(nn.Module):
    """A backbone, the mean over its last map, and a linear layer.

    Args:
        backbone: Returns maps ``(B, C, H, W)``.
        channels: C of the last of them.
        classes: Number of classes.
    """

    def __init__(self, backbone: nn.Module, channels: int, classes: int) -> None:
        super().__init__()
        self.backbone = backbone
        self.head = nn.Linear(channels, classes)

    def forward(self, image: Tensor) -> Tensor:
        """Map ``(B, 3, H, W)`` to ``(B, classes)``."""
        return self.head(self.backbone(image)[-1].mean((2, 3)))


def build_classifier(model: str, arch: str, classes: int = 1000) -> Classifier:
    """Put a classifier on a backbone, as the authors do for their figures.

    Args:
        model: ``'MSVMamba'`` or ``'VMamba'``.
        arch: Name of one of its archs.
        classes: Number of classes.

    Returns:
        The classifier, in evaluation mode.

    Raises:
        ValueError: There is no such backbone, or it has no such arch.
    """
    if model not in BACKBONES:
        raise ValueError(f"there is no backbone {model!r}; choose one of {', '.join(BACKBONES)}")
    archs = BACKBONES[model].archs
    if arch not in archs:
        raise ValueError(f"{model} has no arch {arch!r}; choose one of {', '.join(archs)}")
    dims = archs[arch].embed_dims
    return Classifier(BACKBONES[model](arch, out_indices=(len(dims) - 1,)), dims[-1], classes).eval()


def build_from_config(path: str | Path) -> tuple[BaseModel, tuple[int, int]]:
    """Build the model of a config of mmpretrain, mmdet or mmseg; no weights are loaded.

    Returns:
        The model, in evaluation mode, and the (H, W) that figures of its library are published for.

    Raises:
        ValueError: The config cannot be read or has no model, it is for another library or for one that is not
            installed, or its model cannot be built or has no ``backbone``.
    """
    with _in_one_sentence(f"{path} cannot be read as a config"):
        cfg = Config.fromfile(path)
    library = cfg.get("default_scope")
    if library not in SHAPES or "model" not in cfg:
        raise ValueError(
            f"{path} has {'a' if 'model' in cfg else 'no'} model and default_scope {library!r}, expected a model and "
            f"one of {', '.join(SHAPES)}; give a config that can be trained"
        )
    if "data_preprocessor" in cfg:
        cfg.model.setdefault("data_preprocessor", cfg.data_preprocessor)  # as the runner does
    model = build_openmmlab(library, cfg.model, str(path))
    if not isinstance(getattr(model, "backbone", None), nn.Module):
        raise ValueError(f"the model of {path}, a {type(model).__name__}, has no backbone; give one that has")
    return model, SHAPES[library]


def build_openmmlab(library: str, model: dict, what: str) -> BaseModel:
    """Build a model of OpenMMLab; no weights are loaded.

    Args:
        library: ``'mmpretrain'``, ``'mmdet'`` or ``'mmseg'``.
        model: Its config.
        what: What an error calls it.

    Returns:
        The model, in evaluation mode.

    Raises:
        ValueError: The library is not installed, or the model cannot be built.
    """
    try:
        import_module(f"{library}.models")
    except ImportError as error:
        raise ValueError(
            f"{what} is for {library}, which cannot be imported ({error}): pip install 'mmmsv[{_EXTRAS[library]}]', "
            "and mmcv as README.md says"
        ) from error
    with _in_one_sentence(f"the model of {what} cannot be built"), DefaultScope.overwrite_default_scope(library):
        return MODELS.build(model).eval()


def parameters(model: nn.Module) -> int:
    """Count the parameters of a model as it is trained: with auxiliary heads, as published, and with frozen ones."""
    return sum(parameter.numel() for parameter in model.parameters())


def count(model: nn.Module, shape: tuple[int, int], ours: bool = False, proposals: int = 1000) -> Macs:
    """Count what a model costs for one image; the head of this file says what is counted.

    Models run as in ``model(image)``, without auxiliary heads and without arithmetic. A detector with RoI heads runs in
    parts: these get made-up boxes, since how many it finds depends on its weights, and do compute, for some seconds.

    Args:
        model: A model of mmpretrain, mmdet or mmseg, a backbone, or any other for images of three channels; on the CPU,
            in evaluation mode.
        shape: (H, W) of the image.
        ours: Whether to count what this code computes; otherwise the published convention.
        proposals: Boxes for the RoI heads; by default what mmdet's RPN hands on at most. The heads decide which of them
            get a mask: in mmdet the first 100, but all in a cascade.

    Raises:
        ValueError: The shape is not that of an image, or the model does not run in this way.
    """
    if len(shape) != 2 or not all(type(side) is int and side > 0 for side in shape):
        raise ValueError(f"the shape is {shape}, expected H and W, two whole numbers of at least 1")
    convention = _OURS if ours else _PUBLISHED
    two_stages = getattr(model, "with_roi_head", False)  # a property of mmdet's detectors
    failure = f"{type(model).__name__} cannot be counted on an image of {shape[0]} x {shape[1]}"
    with _in_one_sentence(failure), torch.no_grad():
        if two_stages:
            return _count_two_stages(convention, model, shape, proposals)
        return _count_forward(convention, model, shape)


def _count_forward(convention: "_Convention", model: nn.Module, shape: tuple[int, int]) -> Macs:
    samples = [[describe_image(shape)]] if isinstance(model, BaseModel) else []
    with FakeTensorMode(allow_non_fake_inputs=True):
        return _run(convention, model, torch.empty(1, 3, *shape), *samples)[0]


def _count_two_stages(convention: "_Convention", model: nn.Module, shape: tuple[int, int], proposals: int) -> Macs:
    extract_feat, rpn_head, roi_head = operator.attrgetter("extract_feat", "rpn_head", "roi_head")(model)
    with FakeTensorMode(allow_non_fake_inputs=True):
        features, maps = _run(convention, extract_feat, torch.empty(1, 3, *shape))
        rpn, _ = _run(convention, rpn_head, maps)
    # With numbers: RoI heads look at their boxes, and a compiled RoIAlign reads memory, which fake tensors lack.
    zeros = tuple(torch.zeros(fake.shape) for fake in maps)
    boxes = InstanceData(bboxes=torch.tensor([[0.0, 0.0, 32.0, 32.0]]).repeat(proposals, 1))
    roi, _ = _run(convention, roi_head, zeros, [boxes], [describe_image(shape)])
    return features + rpn + roi


def describe_image(shape: tuple[int, int]) -> BaseDataElement:
    """Describe an image of (H, W) as data preprocessors, and some of mmdet's heads, want it described."""
    sizes = dict.fromkeys(("img_shape", "ori_shape", "pad_shape", "batch_input_shape"), shape)
    return BaseDataElement(metainfo={**sizes, "scale_factor": (1.0, 1.0)})


@contextmanager
def _in_one_sentence(failure: str) -> Iterator[None]:
    """Turn whatever configs and models of others raise into a ValueError that begins with ``failure``."""
    try:
        yield
    except Exception as error:
        raise ValueError(f"{failure}: {type(error).__name__}: {' '.join(str(error).split())}") from error


# What FlopCounterMode asks for the count of an op, with the op's arguments; in the place of a tensor is its shape.
_Formulas: TypeAlias = dict[torch._ops.OpOverloadPacket, Callable[..., int]]


@dataclass(frozen=True)
class _Convention:
    """What is counted besides the products that torch itself knows.

    Args:
        projections: Of a scan, what else of such products there is; two FLOPs for a multiply-add, as torch counts.
        recurrence: Of a scan.
        elementwise: Norms and interpolations.
    """

    projections: Callable[[ScanSizes], int]
    recurrence: Callable[[ScanSizes], int]
    elementwise: _Formulas


def _run(convention: _Convention, part: Callable[..., T], *arguments: object) -> tuple[Macs, T]:
    """Call a part of a model; return its count, and what it returned."""
    recurrences = []

    def of_scan(read_sizes: Callable[..., ScanSizes]) -> Callable[..., int]:
        def scan(*arguments: object, **_: object) -> int:
            sizes = read_sizes(*arguments)
            recurrences.append(convention.recurrence(sizes))
            return convention.projections(sizes)

        return scan

    scans = {op: of_scan(read_sizes) for op, read_sizes in _SCANS.items()}
    formulas = {**scans, **_ATTENTION, **convention.elementwise}
    with FlopCounterMode(display=False, custom_mapping=formulas) as counter:
        output = part(*arguments)
    counts = counter.get_flop_counts().get("Global", {})
    elementwise = sum(counts.get(op, 0) for op in convention.elementwise)
    return Macs((sum(counts.values()) - elementwise) // 2, sum(recurrences), elementwise), output


def _published_projections(sizes: ScanSizes) -> int:
    pairs, routes, sets, rank, state, _ = sizes
    # Per token and channel, not per pair: what each token of a set is projected to, once more for each other route.
    return 2 * pairs * rank + 2 * (pairs // routes) * (routes - sets) * (rank + 2 * state)


def _our_projections(sizes: ScanSizes) -> int:
    return 2 * sizes.pairs * sizes.rank


def _published_recurrence(sizes: ScanSizes) -> int:
    return sizes.recurrence


def _our_recurrence(sizes: ScanSizes) -> int:
    return sizes.pairs * (4 * sizes.state + 1 + sizes.skip)


def _per_input(operations: int) -> Callable[..., int]:
    return lambda x, *_, **__: operations * prod(x)


def _per_output(operations: int) -> Callable[..., int]:
    return lambda *_, out_shape, **__: operations * prod(out_shape)


def _published_merge_scales(
    full: tuple, half: tuple, weight: tuple, bias: tuple, eps: float, norm_first: bool, *_: object, **__: object
) -> int:
    return 5 * (prod(full) + prod(half)) + 4 * prod(full) if norm_first else 5 * prod(full)


def _attention(query: tuple, key: tuple, value: tuple, *_: object, **__: object) -> int:
    return 2 * prod(query[:3]) * key[2] * (query[3] + value[3])


def _attention_with_projections(query: tuple, key: tuple, *_: object, **__: object) -> int:
    """Count what ``nn.MultiheadAttention`` makes of ``(B, L, C)`` outside of training: C to C four times, and so on."""
    batch, tokens, channels = query
    return 2 * batch * tokens * channels * (4 * channels + 2 * key[1])


_SCANS = {torch.ops.mmmsv.scan2d: ScanSizes.of, torch.ops.mmmsv.selective_scan: ScanSizes.of_sequences}
# What torch's counter leaves out of attention on a CPU; the first came with torch 2.2.
_ATTENTION: _Formulas = {
    getattr(torch.ops.aten, op): formula
    for op, formula in {
        "_scaled_dot_product_flash_attention_for_cpu": _attention,
        "_native_multi_head_attention": _attention_with_projections,
    }.items()
    if hasattr(torch.ops.aten, op)
}
_PUBLISHED = _Convention(
    projections=_published_projections,
    recurrence=_published_recurrence,
    elementwise={
        torch.ops.aten.native_layer_norm: _per_input(5),
        torch.ops.aten.native_group_norm: _per_input(5),
        # One or the other, depending on the version of torch.
        torch.ops.aten._native_batch_norm_legit_no_training: _per_input(2),
        torch.ops.aten.native_batch_norm: _per_input(2),
        torch.ops.aten.upsample_bilinear2d: _per_output(4),
        torch.ops.mmmsv.merge_scales: _published_merge_scales,
    },
)
_OURS = _Convention(
    projections=_our_projections,
    recurrence=_our_recurrence,
    elementwise={},
)
