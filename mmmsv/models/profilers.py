"""Tell tools that count by tables what the layers here cost.

thop, ptflops, DeepSpeed and calflops look the exact type of a layer, or an op, up in a table, and count nothing for
what is not in it, without a word. Here the layers are entered. A tool counts each as torch's own layer of its kind, by
its own convention, where it can; a scan as the multiply-adds that this code makes (mmmsv/analysis/flops.py).
"""

import sys
from collections.abc import Callable, Mapping
from functools import partial, wraps
from math import prod
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn

from .fusion import NormFirstFusion, NormLastFusion, UpsampledNorm
from .layers import ChannelsLastConv2d, DepthwiseConv2d, HalvedLinear, LayerNorm, Linear, OutputNorm
from .s6 import S6

# A forward hook that adds what the call of a layer costs to a count that the tool keeps in the layer.
_Hook: TypeAlias = Callable[[Any, tuple[Any, ...], Any], None]
_Hooks: TypeAlias = dict[type[nn.Module], _Hook]
_NORMS = (LayerNorm, OutputNorm, UpsampledNorm, NormLastFusion)


def tell_profilers() -> None:
    """Enter the layers into the tables of the tools that are imported.

    The tools call ``model.eval()`` before they look anything up: a backbone calls this whenever its mode is set.
    """
    for (module, name), entries in _ENTRIES.items():
        table = getattr(sys.modules.get(module), name, None)
        if table is not None and S6 not in table and torch.ops.mmmsv.scan2d not in table:
            table.update(entries(table))


def _as_own_layers(tool: str, count: str, table: _Hooks) -> _Hooks:
    """Return hooks made of those that a tool has for torch's layers.

    Args:
        tool: Its name.
        count: Name of its count in a layer.
        table: Its hooks. What is inside a layer that is in the table, it leaves out.
    """

    def scan(layer: Any, inputs: tuple[Any, ...], output: Any) -> None:
        projected = inputs[0].numel() * layer.sets * sum(layer.token_sizes)
        setattr(layer, count, getattr(layer, count) + projected + _scan_macs(layer, inputs[0]))

    def checked(hook: _Hook) -> _Hook:
        @wraps(hook)
        def call(layer: Any, inputs: tuple[Any, ...], output: Any) -> None:
            if not hasattr(layer, count):
                raise RuntimeError(
                    f"{tool} was imported after the model was built, and has not prepared {type(layer).__name__} for "
                    "its count; call it again"
                )
            hook(layer, inputs, output)

        return call

    hooks: _Hooks = {S6: scan}
    # What a tool does not count of torch's layers, it does not count of these.
    if norm := table.get(nn.LayerNorm):
        hooks |= {**dict.fromkeys(_NORMS, norm), NormFirstFusion: _of_each_input(norm)}
    if linear := table.get(nn.Linear):
        hooks |= dict.fromkeys((Linear, HalvedLinear), linear)
    if conv := table.get(nn.Conv2d):
        hooks |= dict.fromkeys((ChannelsLastConv2d, DepthwiseConv2d), _channels_first(conv))
    return {kind: checked(hook) for kind, hook in hooks.items()}


def _of_each_input(norm: _Hook) -> _Hook:
    def hook(layer: Any, inputs: tuple[Any, ...], output: Any) -> None:
        for each in inputs:
            norm(layer, (each,), output)

    return hook


def _channels_first(conv: _Hook) -> _Hook:
    def hook(layer: Any, inputs: tuple[Any, ...], output: Any) -> None:
        conv(layer, (inputs[0].permute(0, 3, 1, 2),), output.permute(0, 3, 1, 2))

    return hook


def _beside_functions(table: _Hooks) -> _Hooks:
    """Return hooks for layers that call none of the functions in whose place DeepSpeed and calflops put their own."""

    def conv(layer: Any, inputs: tuple[Any, ...], output: Any) -> None:
        macs = output.numel() * layer.weight[0].numel()
        _add(layer, 2 * macs + (output.numel() if layer.bias is not None else 0), macs)

    def norm(layer: Any, inputs: tuple[Any, ...], output: Any) -> None:
        _add(layer, 5 * inputs[0].numel(), 0)

    def two_norms(layer: Any, inputs: tuple[Any, ...], output: Any) -> None:
        _add(layer, 5 * sum(each.numel() for each in inputs), 0)

    def scan(layer: Any, inputs: tuple[Any, ...], output: Any) -> None:
        macs = _scan_macs(layer, inputs[0])
        _add(layer, 2 * macs, macs)

    return {**dict.fromkeys(_NORMS, norm), NormFirstFusion: two_norms, DepthwiseConv2d: conv, S6: scan}


def _add(layer: Any, flops: int, macs: int) -> None:
    layer.__flops__ += flops
    layer.__macs__ += macs


def _as_ops(table: Mapping[Any, Any]) -> dict[Any, Callable[[tuple[Any, ...], tuple[Tensor, ...]], int]]:
    """Return functions of an op's arguments and results, for the backend ``aten`` of ptflops."""

    def conv(arguments: tuple[Any, ...], results: tuple[Tensor, ...]) -> int:
        return results[0].numel() * arguments[1][0].numel()

    def scan(arguments: tuple[Any, ...], results: tuple[Tensor, ...]) -> int:
        x, dt, B, *_ = arguments
        return _macs_of_pairs(x.numel() * len(arguments[8]), dt.shape[-1], B.shape[-1])

    return {torch.ops.mmmsv.depthwise_conv: conv, torch.ops.mmmsv.scan2d: scan}


def _scan_macs(layer: S6, x: Tensor) -> int:
    """Return the multiply-adds of a scan without its projection."""
    rank, state, _ = layer.token_sizes
    return _macs_of_pairs(prod(x.shape) * len(layer.routes), rank, state)


def _macs_of_pairs(pairs: int, rank: int, state: int) -> int:
    """Return the multiply-adds of a scan over so many pairs of a token and a channel: the step, and the recurrence."""
    return pairs * (rank + 4 * state + 2)


# By the module and the name of each table.
_ENTRIES: dict[tuple[str, str], Callable[[Any], dict[Any, Any]]] = {
    ("thop.profile", "register_hooks"): partial(_as_own_layers, "thop", "total_ops"),
    ("ptflops.pytorch_ops", "MODULES_MAPPING"): partial(_as_own_layers, "ptflops", "__flops__"),
    ("ptflops.aten_ops", "ATEN_OPS_MAPPING"): _as_ops,
    ("deepspeed.profiling.flops_profiler.profiler", "MODULE_HOOK_MAPPING"): _beside_functions,
    ("calflops.pytorch_ops", "MODULE_HOOK_MAPPING"): _beside_functions,
}
