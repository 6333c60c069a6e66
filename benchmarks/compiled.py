"""Count what a model launches where its blocks are compiled by ``torch.compile``, without a GPU."""

import re
from collections import Counter
from collections.abc import Callable, Iterator
from typing import NamedTuple
from unittest.mock import patch

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode

from mmmsv.kernels import registration

from .inductor import compiled_kernels
from .traffic import PRODUCTS, Step, as_on_a_gpu, count_steps, pretended_gpu

_BLOCK = re.compile(r"(^|\.)(blocks\.\d+|features\.\d+\.\d+)$")


class _Input(NamedTuple):
    kind: type[nn.Module]
    shape: tuple[int, ...]
    strides: tuple[int, ...]
    dtype: torch.dtype


def _is_block(name: str) -> bool:
    """Return whether a module is a block, by its name: of ours, or of a model of torchvision's."""
    return _BLOCK.search(name) is not None


def compiled_steps(
    make: Callable[[], nn.Module],
    image: tuple[int, ...],
    training: bool,
    capability: int,
    multiprocessors: int,
    dtype: torch.dtype,
) -> list[Step]:
    """Count the launches of a model with compiled blocks.

    Products of matrices and ops of ours, which inductor calls, are those of eager mode; but norms, which it fuses, and
    sums of gradients, which kernels of ours do not add there. What is outside of the blocks counts as in eager mode,
    its backward pass twice its forward pass.

    Args:
        make: Makes the model.
        image: Shape of the images.
        training: Whether gradients are computed.
        capability: Of the GPU.
        multiprocessors: Of the GPU.
        dtype: Of autocast.
    """
    steps = []
    with patch.object(registration, "is_recorded_plainly", lambda *tensors: False):
        eager = count_steps(make, image, training, capability, multiprocessors, dtype, _is_block)
    for step in eager:
        called = step.name in PRODUCTS or (step.part and not step.part.startswith("layer_norm"))
        outside = not step.module and not step.backward
        if called or outside:
            steps.append(step)
            if outside and training and not called:
                steps += [step, step]
    with pretended_gpu(multiprocessors), torch.autocast("cpu", dtype):
        model = as_on_a_gpu(make()).train(training)
        inputs = _inputs_of_blocks(model, image)
        for kind, count in Counter(inputs.values()).items():
            name = [name for name, its in inputs.items() if its == kind][-1]
            x = torch.empty_strided(kind.shape, kind.strides, dtype=kind.dtype)
            steps += count * [*_fused(model.get_submodule(name), x)]
    return steps


def _inputs_of_blocks(model: nn.Module, image: tuple[int, ...]) -> dict[str, _Input]:
    """Return what each block is given."""
    inputs: dict[str, _Input] = {}

    def note(name: str, x: Tensor) -> None:
        block = model.get_submodule(name)
        inputs[name] = _Input(type(block), tuple(x.shape), x.stride(), x.dtype)

    names = [name for name, _ in model.named_modules() if _is_block(name)]
    hooks = [
        model.get_submodule(name).register_forward_pre_hook(lambda _, given, name=name: note(name, *given))
        for name in names
    ]
    with FakeTensorMode(allow_non_fake_inputs=True), torch.no_grad():
        model(torch.empty(image).contiguous(memory_format=torch.channels_last))
    for hook in hooks:
        hook.remove()
    return inputs


def _fused(block: nn.Module, x: Tensor) -> Iterator[Step]:
    """Yield the kernels of a block that inductor makes itself, and the convolutions that it calls."""
    for name, moved in compiled_kernels(block, x):
        convolution = "convolution" in name
        if convolution or not ("extern_kernels" in name or "mmmsv" in name):
            yield Step(name, "", False, "", read=moved, written=0, depthwise=convolution)
