"""Record what backend ``triton`` would launch on a GPU, kernel by kernel, without one: on fake tensors or small ones.

The bytes that a launch moves follow from its arguments; it is compiled when its instructions are asked for, never run.
"""

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any
from unittest.mock import patch

from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor
from triton import JITFunction
from triton.backends.compiler import GPUTarget
from triton.compiler import CompiledKernel
from triton.runtime import driver

from mmmsv.kernels import BACKENDS
from mmmsv.kernels.arguments import ceil_div
from mmmsv.kernels.backends.triton import scan_forward

from .sass import instructions_a_pair, instructions_an_element, resources

# What each kernel writes; the other tensors among its arguments are read.
WRITTEN = {
    "scan_forward": ("y", "states"),
    "scan_backward": ("du", "ddelta", "dz", "dBC", "dweights"),
    "summarise": ("ends", "totals"),
    "carry_over": ("carry",),
    "convolve": ("y",),
    "conv_backward_activation": ("dp",),
    "conv_backward_weight": ("dp", "parts"),
    "gate_forward": ("out",),
    "gate_backward": ("dy", "dz", "parts"),
    "norm_forward": ("y", "moments"),
    "norm_backward": ("dx", "parts"),
    "normalise_half": ("sums", "moments"),
    "merge_forward": ("y", "parts", "moments"),
    "merge_backward_full": ("dfull", "parts"),
    "merge_backward_half": ("dhalf", "parts"),
}
# Arguments that are passed and not touched, or not in the measure of a map.
_UNTOUCHED = ("carry", "starts", "du_sum", "ddelta_sum")
# How many rows of tiles an image has.
_ROWS: dict[str, Callable[[dict[str, Any]], int]] = {
    "convolve": lambda a: (
        ceil_div(a["out_height"], a["SPREAD"]) * ceil_div(ceil_div(a["out_width"], a["SPREAD"]), a["WIDTH"])
    ),
    "conv_backward_activation": lambda a: a["out_height"] * ceil_div(a["out_width"], a["WIDTH"]),
    "conv_backward_weight": lambda a: a["out_height"] * ceil_div(a["out_width"], a["WIDTH"]),
    "merge_forward": lambda a: a["height"] * a["width"],
    "merge_backward_full": lambda a: a["height"] * a["width"],
    "merge_backward_half": lambda a: a["half_height"] * a["half_width"],
}


class CompilingDriver:
    """Stands in for a GPU: Triton asks it what to compile for."""

    def __init__(self, capability: int) -> None:
        self.capability = capability

    def get_current_device(self) -> int:
        return self.capability  # Triton keeps what it has compiled by device

    def get_current_stream(self, device: int) -> int:
        return 0

    def get_current_target(self) -> GPUTarget:
        return GPUTarget("cuda", self.capability, 32)


@dataclass(frozen=True)
class Launch:
    """A kernel that would be launched.

    Args:
        kernel: Its name.
        compile: Compiles it.
        arguments: All arguments and constants, by name.
        programs: Of the grid.
        read: Bytes that it reads, each tensor once.
        written: Bytes that it writes.
    """

    kernel: str
    compile: Callable[[], CompiledKernel]
    arguments: dict[str, Any]
    programs: int
    read: int
    written: int

    @property
    def options(self) -> dict[str, Any]:
        """The arguments that are no tensors."""
        return {name: value for name, value in self.arguments.items() if not isinstance(value, Tensor)}

    @property
    def warps(self) -> int:
        """Warps of a program."""
        return self.arguments["num_warps"]

    @property
    def name(self) -> str:
        """The kernel, and what makes it another one."""
        a = self.arguments
        name = self.kernel + (" backward" if a.get("BACKWARD") else "")
        name += {True: ", norm first", False: ", norm last"}.get(a.get("NORM_FIRST"), "")
        name += ", gated" if self.is_scan and a["z"] is not None else ""
        name += f", {a['K']} x {a['K']}, {a['ACTIVATION']}" if "K" in a else ""
        return name + "".join(f", {one}" for one in ("dy_again", "dx_again", "added") if a.get(one) is not None)

    @cached_property
    def compiled(self) -> CompiledKernel:
        """What it is compiled to."""
        return self.compile()

    @cached_property
    def resources(self) -> tuple[int, int, int]:
        """Registers of a thread, spilled bytes, shared bytes."""
        return resources(self.compiled)

    @property
    def is_scan(self) -> bool:
        """Whether it walks tokens one by one."""
        return self.kernel in ("scan_forward", "scan_backward", "summarise")

    @cached_property
    def instructions_a_pair(self) -> float:
        """Instructions of a warp for a channel of a token."""
        if self.is_scan:
            return instructions_a_pair(self.compiled, self.arguments)
        return instructions_an_element(self.name, self.compiled, self.arguments)

    @property
    def instructions(self) -> float:
        """Instructions of all warps, but for what is outside of their loops."""
        a = self.arguments
        if self.kernel == "carry_over":
            return 0.0  # a few, one after the other
        if self.is_scan:
            tokens = a["u" if "u" in a else "signal"].shape[2] * a["ROUTES"]
            return self.instructions_a_pair * self.programs / max(a["spans"] * a["ROUTES"], 1) * tokens * a["VECTOR"]
        rows = _ROWS[self.kernel](a) if self.kernel in _ROWS else a["tokens"]
        tiles = self.programs / ceil_div(rows, a["span"]) * ceil_div(rows, a["ROWS"])
        return self.instructions_a_pair * tiles * a["ROWS"] * a["COLUMNS"] * a.get("WIDTH", 1) / 32


@contextlib.contextmanager
def recording(capability: int, on_launch: Callable[[Launch], None]) -> Iterator[None]:
    """Let backend triton run on a CPU's tensors, fake ones too, and hand over what it would launch.

    Raises:
        RuntimeError: The kernels were imported for Triton's interpreter.
    """
    if not isinstance(scan_forward.scan_forward, JITFunction):
        raise RuntimeError(
            "the kernels were imported for Triton's interpreter; count in a process without TRITON_INTERPRET"
        )
    run = JITFunction.run

    def record(kernel: JITFunction, *args: object, grid: tuple[int, ...], warmup: bool, **constants: Any) -> None:
        arguments = dict(zip(kernel.arg_names, args, strict=False)) | constants
        untouched = _UNTOUCHED
        if kernel.__name__ == "conv_backward_weight" and constants["ACTIVATION"] == "none":
            untouched = (*untouched, "dp")  # it is dy
        tensors = {name: t for name, t in arguments.items() if isinstance(t, Tensor) and name not in untouched}
        size = {name: tensor.numel() * tensor.element_size() for name, tensor in tensors.items()}
        if constants.get("SUMMED"):  # each route but the first adds to what those before it have written
            for name in ("du_sum", "ddelta_sum"):
                size[name] = 2 * (constants["ROUTES"] - 1) * arguments[name].numel() * arguments[name].element_size()
        writes = sum(size[name] for name in WRITTEN[kernel.__name__] if name in size)

        def compile_() -> CompiledKernel:
            with _driver(capability), _addresses():
                return run(kernel, *args, grid=grid, warmup=True, **constants)

        on_launch(Launch(kernel.__name__, compile_, arguments, grid[0], sum(size.values()) - writes, writes))

    runnable = replace(BACKENDS["triton"], why_not=lambda device: None)
    with (
        patch.object(JITFunction, "run", record),
        patch.dict(BACKENDS, triton=runnable),
        _addresses(),
    ):
        yield


@contextlib.contextmanager
def _driver(capability: int) -> Iterator[None]:
    before = dict(vars(driver))
    driver.set_active(CompilingDriver(capability))
    try:
        yield
    finally:
        vars(driver).update(before)


def _addresses() -> contextlib.AbstractContextManager:
    """Give fake tensors an address, the best aligned one."""
    return patch.object(FakeTensor, "data_ptr", lambda tensor: 0)
