"""Tell tools that count by the types of layers what the layers here cost.

thop and ptflops look the exact type of a layer up in a table, and count nothing, without a word, for what is not in it.
Here each layer is entered as what it is to the tool, which counts it by its own convention. A scan is counted as the
multiply-adds that this code makes (mmmsv/analysis/flops.py).
"""

import sys
from collections.abc import Callable
from functools import wraps
from math import prod
from typing import Any, TypeAlias

from torch import nn

from .fusion import NormFirstFusion, NormLastFusion, UpsampledNorm
from .layers import ChannelsLastConv2d, DepthwiseConv2d, HalvedLinear, LayerNorm, Linear, OutputNorm
from .s6 import S6

# A forward hook that adds what the call of a layer costs to a count that the tool keeps in the layer.
_Hook: TypeAlias = Callable[[Any, tuple[Any, ...], Any], None]
_Table: TypeAlias = dict[type[nn.Module], _Hook]
# Of each tool: its name, the module and the name of its table, and the name of its count in a layer.
_TOOLS = (
    ("thop", "thop.profile", "register_hooks", "total_ops"),
    ("ptflops", "ptflops.pytorch_ops", "MODULES_MAPPING", "__flops__"),
)


def tell_profilers() -> None:
    """Enter the layers into the tables of thop and ptflops, if these are imported.

    Both call ``model.eval()`` before they look types up: a backbone calls this whenever its mode is set.
    """
    for tool, module, name, count in _TOOLS:
        table = getattr(sys.modules.get(module), name, None)
        if table is not None and S6 not in table:
            table.update({kind: _checked(hook, tool, count) for kind, hook in _hooks(table, count).items()})


def _hooks(table: _Table, count: str) -> _Table:
    """Return a hook for each type of layer, made of those that the tool has for torch's layers."""
    norm, linear, conv = table[nn.LayerNorm], table[nn.Linear], table[nn.Conv2d]

    def channels_first_conv(layer: Any, inputs: tuple[Any, ...], output: Any) -> None:
        conv(layer, (inputs[0].permute(0, 3, 1, 2),), output.permute(0, 3, 1, 2))

    def two_norms(layer: Any, inputs: tuple[Any, ...], output: Any) -> None:
        for each in inputs:
            norm(layer, (each,), output)

    def scan(layer: Any, inputs: tuple[Any, ...], output: Any) -> None:
        # With its projection: the tools leave out what is inside a layer that they know.
        *tokens, channels = inputs[0].shape
        rank, state, _ = layer.token_sizes
        of_token = layer.x_proj.weight.numel() + len(layer.routes) * channels * (4 * state + 2 + rank)
        setattr(layer, count, getattr(layer, count) + prod(tokens) * of_token)

    return {
        **dict.fromkeys((LayerNorm, OutputNorm, UpsampledNorm, NormLastFusion), norm),
        NormFirstFusion: two_norms,
        **dict.fromkeys((Linear, HalvedLinear), linear),
        **dict.fromkeys((ChannelsLastConv2d, DepthwiseConv2d), channels_first_conv),
        S6: scan,
    }


def _checked(hook: _Hook, tool: str, count: str) -> _Hook:
    @wraps(hook)
    def checked(layer: Any, inputs: tuple[Any, ...], output: Any) -> None:
        if not hasattr(layer, count):
            raise RuntimeError(
                f"{tool} was imported after the model was built, and has not prepared {type(layer).__name__} for its "
                "count; call it again"
            )
        hook(layer, inputs, output)

    return checked
