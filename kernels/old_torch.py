"""What torch before 2.4 calls otherwise. Once 2.4 is the oldest that is supported, this file goes."""

from collections.abc import Callable

import torch
from torch.utils import flop_counter

__all__ = ["is_autocast_enabled", "register_flop_formula"]

if torch.__version__ >= "2.4.0.dev0":
    is_autocast_enabled = torch.is_autocast_enabled
    register_flop_formula = flop_counter.register_flop_formula
else:

    def is_autocast_enabled(device_type: str) -> bool:
        """Tell whether autocast is on for a type of device; these versions know no others."""
        return torch.is_autocast_cpu_enabled() if device_type == "cpu" else torch.is_autocast_enabled()

    def register_flop_formula(op: torch._ops.OpOverloadPacket) -> Callable[[Callable], Callable]:
        """Make ``FlopCounterMode`` count ``op`` by the function below."""

        def register(formula: Callable) -> Callable:
            flop_counter.flop_mapping[op] = formula
            return formula

        return register
