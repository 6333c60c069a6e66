"""Count the ops that a model runs on a GPU, the bytes that they move, and their FLOPs: on fake tensors, without a GPU.

The tensors are those of a CPU, for autograd cannot run on fake ones of a GPU where there is none; autocast is made to
treat them as it treats a GPU's. In the place of our ops stand the kernels that backend triton launches, and the ops of
PyTorch's around them. What is counted is each one's inputs and outputs, once, as if caches held nothing from one to the
next.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from functools import partial
from math import prod
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor, nn
from torch._ops import OpOverload
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten

from mmmsv.kernels import BACKENDS, ops
from mmmsv.kernels import scan as public
from mmmsv.kernels.arguments import choose_chunk
from mmmsv.kernels.backends.triton import plan, step
from mmmsv.models.recompute import RecomputingModule

from .launches import Launch, recording

# Ops that move nothing: views, and memory that is not written.
_FREE = frozenset(
    [
        "_reshape_alias",
        "_unsafe_view",
        "alias",
        "as_strided",
        "as_strided_",
        "chunk",
        "detach",
        "device",
        "diagonal",
        "empty",
        "empty_like",
        "empty_strided",
        "expand",
        "is_same_size",
        "narrow",
        "new_empty",
        "new_empty_strided",
        "permute",
        "reshape",
        "select",
        "slice",
        "split",
        "split_with_sizes",
        "squeeze",
        "t",
        "transpose",
        "unbind",
        "unflatten",
        "unsqueeze",
        "view",
    ]
)
# Ops that write and do not read.
_FILLS = frozenset(
    [
        "bernoulli_",
        "fill_",
        "full",
        "full_like",
        "new_full",
        "new_zeros",
        "ones",
        "ones_like",
        "zero_",
        "zeros",
        "zeros_like",
    ]
)
PRODUCTS = frozenset(["addmm", "baddbmm", "bmm", "mm"])
_CUDA = torch.device("cuda")


@dataclass(frozen=True)
class Step:
    """An op of PyTorch's, or a launch of a kernel of ours, that a model has run.

    Args:
        name: Of the op, without its namespace, or of the kernel.
        part: Our op that it is a part of; empty for one of PyTorch's own.
        backward: Whether it ran in the backward pass.
        module: Name of the innermost watched module that it ran in; the last one of the forward pass where it ran in
            the backward pass.
        read: Bytes that it reads.
        written: Bytes that it writes.
        flops: Two for each multiply-add of a product or a convolution, else 0.
        shape: Of its first output.
        depthwise: Whether it is a depthwise convolution of PyTorch's.
        launch: The launch, of a kernel.
    """

    name: str
    part: str
    backward: bool
    module: str
    read: int
    written: int
    flops: int = 0
    shape: tuple[int, ...] = ()
    depthwise: bool = False
    launch: Launch | None = None

    @property
    def moved(self) -> int:
        """Bytes that it reads and writes."""
        return self.read + self.written


class _Counter(TorchDispatchMode):
    """Keeps each op that moves something, and each launch."""

    def __init__(self) -> None:
        super().__init__()
        self.steps: list[Step] = []
        self.backward, self.modules, self.part = False, [""], ""

    def add_launch(self, launch: Launch) -> None:
        """Keep a launch."""
        where = (self.part, self.backward, self.modules[-1])
        self.steps.append(Step(launch.name, *where, launch.read, launch.written, launch=launch))

    def __torch_dispatch__(
        self, func: OpOverload, types: Sequence[type], args: tuple = (), kwargs: dict | None = None
    ) -> Any:
        namespace, name = func._schema.name.split("::")
        if namespace == "mmmsv":
            self.part = name
            with self:  # what the kernels' host code calls
                out = _run(name, args)
            self.part = ""
            return out
        if namespace == "aten":
            with self:
                out = func.decompose(*args, **(kwargs or {}))  # below autograd, which has not done so
            if out is not NotImplemented:
                return out
        out = func(*args, **(kwargs or {}))
        if name not in _FREE:
            ins, outs = _tensors((args, kwargs)), _tensors(out)
            read, written = _moved(name, args, ins, outs)
            depthwise = name.startswith("convolution") and args[-2 if name == "convolution_backward" else -1] > 1
            shape = tuple(outs[0].shape) if outs else ()
            flops = _flops(name, args)
            self.steps.append(
                Step(name, self.part, self.backward, self.modules[-1], read, written, flops, shape, depthwise)
            )
        return out


def _run(name: str, args: tuple) -> tuple[Tensor, ...]:
    """Compute an op of ours as its implementation does, by backend triton."""
    op = getattr(ops, name.removesuffix("_backward"))
    return op._backward(*args) if name.endswith("_backward") else op._forward(*args)


def _tensors(tree: object) -> list[Tensor]:
    return [leaf for leaf in tree_flatten(tree)[0] if isinstance(leaf, Tensor)]


def _bytes(*tensors: Tensor | None) -> int:
    """Return the bytes of tensors, what is expanded once."""
    return sum(
        t.element_size() * prod(size for size, stride in zip(t.shape, t.stride(), strict=True) if stride)
        for t in tensors
        if t is not None
    )


def _moved(name: str, args: tuple, ins: list[Tensor], outs: list[Tensor]) -> tuple[int, int]:
    """Return the bytes that an op reads and writes, as eager CUDA kernels do."""
    match name:
        case "convolution":
            x, weight, bias = args[:3]
            again = 0 if bias is None else _bytes(*outs)  # the bias is a pass of its own behind cuDNN's
            return _bytes(x, weight) + again, _bytes(*outs) + again
        case "convolution_backward":
            dy, x, weight, *_, wanted = args
            reads = (_bytes(dy, weight), _bytes(dy, x), _bytes(dy))
            return sum(read for read, one in zip(reads, wanted, strict=True) if one), _bytes(*outs)
        case "native_layer_norm":
            return _bytes(args[0]), _bytes(*outs)
        case "native_layer_norm_backward":  # one kernel for x, one for the weights
            return 2 * _bytes(*args[:2]), _bytes(*outs)
        case "copy_":
            return _bytes(args[1]), _bytes(args[0])
        case _ if name in _FILLS:
            return 0, _bytes(*outs)
    return _bytes(*ins), _bytes(*outs)


def _flops(name: str, args: tuple) -> int:
    if name in PRODUCTS:
        left, right = _tensors(args)[-2:]
        return 2 * prod(left.shape) * right.shape[-1]
    if name == "convolution":
        x, weight, _, stride, padding, dilation, *_ = args
        sides = zip(x.shape[2:], weight.shape[2:], stride, padding, dilation, strict=True)
        outputs = prod((side + 2 * pad - (k - 1) * far - 1) // step + 1 for side, k, step, pad, far in sides)
        return 2 * len(x) * outputs * prod(weight.shape)
    if name == "convolution_backward":
        dy, _, weight, *_, wanted = args
        return 2 * dy.shape[0] * prod(dy.shape[2:]) * prod(weight.shape) * sum(wanted[:2])
    return 0


def _layer_norm_of_cuda(x: Tensor, *others: Any, layer_norm: Callable[..., Tensor] = torch.layer_norm) -> Tensor:
    """Compute a norm as CUDA's autocast does and a CPU's does not: it takes and gives float32."""
    is_narrow = x.dtype in (torch.bfloat16, torch.float16)
    return layer_norm(x.float() if is_narrow and torch.is_autocast_enabled("cpu") else x, *others)


@contextmanager
def pretended_gpu(multiprocessors: int) -> Iterator[None]:
    """Make tensors of a CPU run what a GPU would: kernels of backend triton, PyTorch's own ops, CUDA's autocast."""
    can_run = {"why_not": lambda device: None, "automatic_for": None}
    backends = {name: replace(BACKENDS[name], **can_run) for name in ("triton", "torch")}
    with ExitStack() as stack:
        stack.enter_context(patch.dict(BACKENDS, backends, clear=True))
        stack.enter_context(patch.object(public, "choose_chunk", lambda device, state: choose_chunk(_CUDA, state)))
        wanted = multiprocessors * plan._WARPS_WANTED
        stack.enter_context(patch.object(plan, "warps_wanted", lambda device: wanted))
        stack.enter_context(patch.object(step, "_wide_product", partial(torch.bmm, out_dtype=torch.float32)))
        stack.enter_context(patch.object(torch, "layer_norm", _layer_norm_of_cuda))
        yield


def as_on_a_gpu(model: nn.Module) -> nn.Module:
    """Let a model keep what it keeps on a GPU, without computing it again; return the model."""
    for module in model.modules():
        if isinstance(module, RecomputingModule) and module.recompute is None:
            module.recompute = False
    return model


def count_steps(
    make: Callable[[], nn.Module],
    image: tuple[int, ...],
    training: bool,
    capability: int = 90,
    multiprocessors: int = 132,
    dtype: torch.dtype = torch.bfloat16,
    watched: Callable[[str], bool] = lambda name: False,
) -> list[Step]:
    """Count the ops and launches of inference, or of a forward and backward pass.

    Args:
        make: Makes the model.
        image: Shape of the images, ``(B, 3, H, W)``; they are channels-last.
        training: Whether gradients are computed.
        capability: Of the GPU, such as 90.
        multiprocessors: Of the GPU.
        dtype: Of autocast.
        watched: Says of the name of a module whether ops are to be told apart by it.
    """
    counter = _Counter()
    fakes = FakeTensorMode(allow_non_fake_inputs=True)
    with recording(capability, counter.add_launch), pretended_gpu(multiprocessors), fakes:
        model = as_on_a_gpu(make()).train(training)
        inputs = torch.empty(image).contiguous(memory_format=torch.channels_last)
        for name, module in model.named_modules():
            if watched(name):
                module.register_forward_pre_hook(lambda *_, name=name: counter.modules.append(name))
                module.register_forward_hook(lambda *_: counter.modules.pop() and None)
        with counter, torch.autocast("cpu", dtype), torch.set_grad_enabled(training):
            y = model(inputs)
        if training:
            counter.backward = True
            with counter:
                torch.autograd.backward(y, torch.empty_like(y))
    return counter.steps
