"""Run steps of inference or training of a model, with all that they need."""

import logging
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from . import machine, models
from .memory import rise

LAYOUTS = {"channels_last": torch.channels_last, "contiguous": torch.contiguous_format}
MODES = ("eager", "compiled")
DTYPES = ("float32", "bfloat16", "float16")
_CLASSES = 1000
_LEARNING_RATE = 1e-4


@dataclass(frozen=True)
class Step:
    """What every model of a group does in a step.

    Args:
        height: Of the images.
        width: Of the images.
        batch: Number of images.
        training: Whether it is a training step: forward, loss, backward, AdamW and zero_grad.
        dtype: Name of the dtype: weights and images are float32, and another one is autocast's.
        maps: Whether the model returns the maps of its four stages instead of logits.
    """

    height: int
    width: int
    batch: int
    training: bool
    dtype: str
    maps: bool

    @property
    def kind(self) -> str:
        """``'training'`` or ``'inference'``."""
        return "training" if self.training else "inference"

    @property
    def size(self) -> str:
        """H x W."""
        return f"{self.height} x {self.width}"

    @property
    def pixels(self) -> int:
        """Of all images."""
        return self.batch * self.height * self.width

    def __str__(self) -> str:
        return f"{self.kind}, {self.batch} x {self.size}"


class Variant(NamedTuple):
    """How a model is run: the memory layout of weights and images, and the mode."""

    layout: str
    mode: str

    def __str__(self) -> str:
        return f"{self.layout}, {self.mode}"


class Peak(NamedTuple):
    """Bytes in use at the peak of a call, and how many of them are not weights."""

    whole: int
    beyond_weights: int


class Workload:
    """A model that makes one step at a call.

    Args:
        name: Full name of the model.
        step: What it does.
        variant: How.
        device: Where.
    """

    def __init__(self, name: str, step: Step, variant: Variant, device: torch.device) -> None:
        torch.manual_seed(0)
        layout = LAYOUTS[variant.layout]
        self.step, self.device = step, device
        model = models.build(name, step.maps, (step.height, step.width))
        # pyrefly: ignore[no-matching-overload]: torch's overloads leave out memory_format, which its docs have
        self.model = model.to(device, memory_format=layout).train(step.training)
        image = torch.randn(step.batch, 3, step.height, step.width)
        self.image = image.to(device).contiguous(memory_format=layout)
        self.labels = torch.randint(_CLASSES, (step.batch,)).to(device)
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=_LEARNING_RATE) if step.training else None
        self._forward = _compiled(self.model) if variant.mode == "compiled" else self.model
        self._map_gradients: tuple[Tensor, ...] | None = None

    def __call__(self) -> None:
        """Make a step."""
        if self.optimizer is None:
            with torch.inference_mode(), self._autocast():
                self._forward(self.image)
            return
        try:
            with self._autocast():
                output = self._forward(self.image)
                loss = None if self.step.maps else nn.functional.cross_entropy(output, self.labels)
            if loss is None:
                torch.autograd.backward(output, self._gradients_of(output))
            else:
                loss.backward()
            self.optimizer.step()
        finally:  # also where memory ran out: the others need it
            self.optimizer.zero_grad()

    @property
    def parameters(self) -> int:
        """How many there are."""
        return sum(parameter.numel() for parameter in self.model.parameters())

    def peak(self) -> Peak:
        """Measure the peak memory of a step; there has been one already.

        What stays from step to step is counted, and what a step takes beyond that is measured; so others may have
        memory in use in the same process, but on a CPU they should not have freed any.

        Raises:
            OSError: The system does not report it.
        """
        weights = _bytes([*self.model.parameters(), *self.model.buffers()])
        states = (
            [value for state in self.optimizer.state.values() for value in state.values()] if self.optimizer else []
        )
        given = self._map_gradients or ()
        beyond = _bytes([self.image, self.labels, *states, *given]) + rise(self, self.device)
        return Peak(weights + beyond, beyond)

    def _autocast(self) -> torch.autocast:
        enabled = self.step.dtype != "float32"
        dtype = getattr(torch, self.step.dtype) if enabled else torch.bfloat16
        return torch.autocast(self.device.type, dtype, enabled=enabled)

    def _gradients_of(self, maps: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        """Return what a neck would hand down, the same at each step: a mean of maps that are normed has no gradient."""
        if self._map_gradients is None:
            self._map_gradients = tuple(torch.randn_like(one) / one.numel() for one in maps)
        return self._map_gradients


def peak_in_child(name: str, step: Step, variant: Variant, device: str, threads: int) -> Peak:
    """Measure the peak memory of a step; runs in a fresh process."""
    # What there is to log, such as which scan backend cannot run, the process that started this one has logged.
    logging.disable(logging.WARNING)
    torch.set_num_threads(threads)
    machine.scan_backend(torch.device(device))  # which sets malloc up for all models, as where they are timed
    workload = Workload(name, step, variant, torch.device(device))
    workload()  # starts and compiles what is needed, and makes the states of the optimizer
    return workload.peak()


def _compiled(model: nn.Module) -> Callable[..., Any]:
    # Models of one class, as the variants of several archs are, would stay eager without a word beyond this limit.
    torch._dynamo.config.cache_size_limit = 64
    return torch.compile(model, dynamic=False)


def _bytes(tensors: Iterable[Tensor]) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)
