"""Provide functions of torch under one name, whatever the version: needed until 2.7 is the oldest one supported."""

import contextlib
from collections.abc import Callable

import torch
from torch.utils import flop_counter

if torch.__version__ >= "2.2":
    from torch.compiler import is_compiling as is_compiling
else:
    from torch._dynamo import is_compiling as is_compiling

if hasattr(torch.compiler, "is_exporting"):
    may_be_exporting = torch.compiler.is_exporting
else:

    def may_be_exporting() -> bool:
        """Return True: before 2.7 torch does not say whether what it compiles is exported."""
        return True


if hasattr(torch._ops, "_len_torch_dispatch_stack_pre_dispatch"):

    def is_traced_early() -> bool:
        """Return whether ``make_fx(pre_dispatch=True)`` records: its modes are on a stack of their own."""
        return torch._ops._len_torch_dispatch_stack_pre_dispatch() > 0
else:

    def is_traced_early() -> bool:
        """Return False: recording before the dispatcher came with torch 2.2."""
        return False


if torch.__version__ >= "2.4":
    is_autocast_enabled = torch.is_autocast_enabled
    get_autocast_dtype = torch.get_autocast_dtype
    register_flop_formula = flop_counter.register_flop_formula
else:

    def is_autocast_enabled(device_type: str) -> bool:
        """Return whether autocast is on for CPUs or for GPUs."""
        return torch.is_autocast_cpu_enabled() if device_type == "cpu" else torch.is_autocast_enabled()

    def get_autocast_dtype(device_type: str) -> torch.dtype:
        """Return the dtype that autocast casts to on CPUs or on GPUs."""
        return torch.get_autocast_cpu_dtype() if device_type == "cpu" else torch.get_autocast_gpu_dtype()

    def register_flop_formula(op: torch._ops.OpOverloadPacket) -> Callable[[Callable], Callable]:
        """Make ``FlopCounterMode`` count ``op`` by the function below."""

        def register(formula: Callable) -> Callable:
            # Not by the function that torch 2.2 has for this: it registers overloads, and packets are looked up.
            if torch.__version__ >= "2.2":
                flop_counter.flop_registry[op] = flop_counter.shape_wrapper(formula)
            else:
                # pyrefly: ignore[missing-attribute]: torch 2.1 has it
                flop_counter.flop_mapping[op] = formula
            return formula

        return register


def without_autocast(device: torch.device) -> contextlib.AbstractContextManager:
    """Compute in the dtypes that are given, whatever autocast would make of them, while a ``with`` block runs."""
    if device.type != "meta" and is_autocast_enabled(device.type):
        return torch.autocast(device.type, enabled=False)
    return contextlib.nullcontext()
