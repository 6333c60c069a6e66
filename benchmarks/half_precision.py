"""Find how large weights, images and gradients may be before a model in half precision gives infinity or NaN.

python -m benchmarks.half_precision --output FILE

Each row scales one kind of weight, the image or the loss by 2^k, and says for each precision the largest k up to which
all is finite. The models have the blocks and channels of their archs, at most two blocks a stage, and random weights.
"""

import argparse
import copy
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import replace
from functools import partial
from pathlib import Path

import torch
from torch import Tensor, nn

from mmmsv.models import MSVMamba, VMamba
from mmmsv.models.backbone import VisionMamba

# What is scaled: the ends of the names of its weights.
WEIGHTS = {
    "stem": ("stem.conv.weight", "stem.conv1.weight", "stem.conv2.weight"),
    "norms": ("norm1.weight", "norm2.weight", "out_norm.weight"),
    "in_proj": ("in_proj.weight",),
    "convolutions before the scans": ("full_conv.weight", "half_conv.weight"),
    "x_proj": ("x_proj.weight",),
    "step": ("dt_weight",),
    "skip": ("skip",),
    "out_proj": ("out_proj.weight",),
    "squeeze-and-excitation": ("reduce.weight", "expand.weight"),
    "fc1": ("fc1.weight",),
    "convolution of the FFN": ("dwconv.weight",),
    "fc2": ("fc2.weight",),
}
PRECISIONS = {
    "float32": (torch.float32, False),
    "bfloat16, autocast": (torch.bfloat16, True),
    "bfloat16, whole": (torch.bfloat16, False),
    "float16, autocast": (torch.float16, True),
    "float16, whole": (torch.float16, False),
}
LARGEST = 127  # 2^128 is infinite in float32


def build(backbone: type[VisionMamba], arch: str) -> VisionMamba:
    """Make a model with the blocks of an arch, at most two in a stage."""
    torch.manual_seed(0)
    settings = backbone.archs[arch]
    depths = tuple(min(depth, 2) for depth in settings.depths)
    return backbone(replace(settings, depths=depths), drop_path_rate=0.0)


def largest_scale(is_finite: Callable[[int], bool]) -> int:
    """Return the largest k up to which all is finite, as far as a doubling search sees; -1 where nothing is."""
    low, high = -1, 0
    while high <= LARGEST and is_finite(high):
        low, high = high, max(2 * high, 1)
    high = min(high, LARGEST + 1)
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if is_finite(middle) else (low, middle)
    return low


def run(model: nn.Module, image: Tensor, dtype: torch.dtype, autocast: bool) -> tuple[Tensor, ...]:
    """Compute the maps of an image; ``model`` and ``image`` are in float32 under autocast, otherwise in ``dtype``."""
    with torch.autocast(image.device.type, dtype) if autocast else nullcontext():
        return model(image)


def are_finite(tensors: Iterator[Tensor] | tuple[Tensor, ...]) -> bool:
    """Return whether no number of some tensors is infinite or NaN."""
    return all(bool(each.isfinite().all()) for each in tensors)


def forward_is_finite(
    model: nn.Module, image: Tensor, names: tuple[str, ...], dtype: torch.dtype, autocast: bool, k: int
) -> bool:
    """Return whether the maps are finite where weights are scaled by 2^k; where ``names`` is empty, the image."""
    scaled, scale = copy.deepcopy(model), 2.0**k
    with torch.no_grad():
        for name, weight in scaled.named_parameters():
            if name.endswith(names):
                weight.mul_(scale)
        image = image if names else image * scale
        if not autocast:
            scaled, image = scaled.to(dtype), image.to(dtype)
        return are_finite(run(scaled, image, dtype, autocast))


def gradients_are_finite(model: nn.Module, image: Tensor, dtype: torch.dtype, autocast: bool, k: int) -> bool:
    """Return whether the gradients of all weights are finite where the loss, a mean of the maps, is scaled by 2^k."""
    model = copy.deepcopy(model)
    if not autocast:
        model, image = model.to(dtype), image.to(dtype)
    weigh = torch.Generator().manual_seed(0)
    maps = run(model, image, dtype, autocast)
    loss = sum((each.float() * torch.randn(each.shape, generator=weigh)).mean() for each in maps)
    (loss * 2.0**k).backward()
    return are_finite(weight.grad for weight in model.parameters() if weight.grad is not None)


def rows(model: VisionMamba, image: Tensor) -> Iterator[tuple[str, list[int]]]:
    """Yield what is scaled, and the largest k of each precision."""
    names = [name for name, _ in model.named_parameters()]
    kinds = {kind: ends for kind, ends in WEIGHTS.items() if any(name.endswith(ends) for name in names)}
    for kind, ends in {"image": (), **kinds}.items():
        check = partial(forward_is_finite, model, image, ends)
        yield kind, [largest_scale(partial(check, *precision)) for precision in PRECISIONS.values()]
    check = partial(gradients_are_finite, model, image)
    yield "loss (gradients)", [largest_scale(partial(check, *precision)) for precision in PRECISIONS.values()]


def main(arguments: list[str] | None = None) -> None:
    """Write the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("archs", nargs="*", help="such as MSVMamba:nano; all archs when omitted")
    parser.add_argument("--output", type=Path, required=True, help="Markdown file")
    given = parser.parse_args(arguments)
    backbones = {backbone.__name__: backbone for backbone in (MSVMamba, VMamba)}
    every = [f"{name}:{arch}" for name, backbone in backbones.items() for arch in backbone.archs]
    unknown = [arch for arch in given.archs if arch not in every]
    if unknown:
        parser.error(f"there is no {unknown[0]!r}; choose of {', '.join(every)}")
    lines = [f"| arch | scaled | {' | '.join(PRECISIONS)} |", "|" + "---|" * (2 + len(PRECISIONS))]
    for arch in given.archs or every:
        name, _, settings = arch.partition(":")
        for kind, scales in rows(build(backbones[name], settings), torch.randn(1, 3, 64, 64)):
            lines.append(f"| {arch} | {kind} | {' | '.join(map(str, scales))} |")
            given.output.write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
