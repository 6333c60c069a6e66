"""Compute layers in one call, where nothing but their result is asked for and nobody has changed them.

That is the blocks of a stage, or what lowers the resolution before them.

On a CPU much of their time goes into writing maps and reading them again, and, with a single image, into the calls
themselves (docs/speed.md).
"""

from collections.abc import Callable, Iterable
from typing import Any

from torch import Tensor, nn

from mmmsv.kernels import whole_block as whole

from .blocks import MS3Block, PostNormMS3Block, VSSBlock
from .ffn import MLP, ConvFFN
from .fusion import NormFirstFusion, NormLastFusion
from .layers import ChannelsLastConv2d, DepthwiseConv2d, DropPath, HalvedLinear, LayerNorm, Linear
from .ms2d import MS2D, SS2D, SqueezeExcite
from .recompute import is_every_call_observed
from .s6 import S6

_LAYERS = (
    *(SS2D, MS2D, S6, SqueezeExcite, ConvFFN, MLP, NormFirstFusion, NormLastFusion),
    *(ChannelsLastConv2d, DepthwiseConv2d, DropPath, HalvedLinear, LayerNorm, Linear, nn.Dropout),
)
# Where the norm of the second branch is; None where there is no second branch.
_FFN_NORMS = {VSSBlock: None, MS3Block: "pre", PostNormMS3Block: "post"}
_FORWARDS: dict[type[nn.Module], Callable[..., Any]] = {layer: layer.forward for layer in (*_FFN_NORMS, *_LAYERS)}
# Methods that a call of a layer uses. One that an instance has of its own is not that of its class.
_METHODS = frozenset(
    (
        "_call_impl",
        "_compiled_call_impl",
        "forward",
        "compute",
        "_conv_forward",
        "project_in",
        "project_out",
        "gate_and_project",
        "normalise",
        "project",
        "decay_rate",
        "mix_and_project",
        "result_dtype",
    )
)

_CONVOLVE = (nn.Conv2d.forward, nn.Conv2d._conv_forward)


class _ChangedError(Exception):
    """A layer is not as it was built, or its call does more than its forward."""


_CHANGED = (_ChangedError, KeyError)  # KeyError: it lacks a layer or a parameter, which its forward will say


def compute_in_one_call(blocks: Iterable[nn.Module], x: Tensor) -> Tensor | None:
    """Compute the forward passes of blocks, one after the other; return None where they are to be called one by one."""
    if not whole.is_asked_for(x) or is_every_call_observed():
        return None
    try:
        weights = [_weights(block) for block in blocks]
    except _CHANGED:
        return None
    return whole.compute(x, weights) if weights else None


def merge_patches(x: Tensor, norm: nn.Module, reduction: nn.Module) -> Tensor | None:
    """Compute ``reduction(norm(patch))`` of patches of 2 x 2 tokens; return None where the layers are to be called."""

    def describe() -> whole.Downsampling:
        weight, bias = _linear(reduction)
        return whole.Downsampling(_norm(norm), weight, bias, None, kernel=2, stride=2, padding=0)

    return _downsampled(x, describe)


def convolve_and_norm(x: Tensor, conv: nn.Module, norm: nn.Module) -> Tensor | None:
    """Compute ``norm(conv(x))``, 3 x 3 with a stride of 2; return None where the layers are to be called."""

    def describe() -> whole.Downsampling:
        weight, bias = _strided_conv(conv)
        return whole.Downsampling(None, weight, bias, _norm(norm), kernel=3, stride=2, padding=1)

    return _downsampled(x, describe)


def _downsampled(x: Tensor, describe: Callable[[], whole.Downsampling]) -> Tensor | None:
    if not whole.is_downsampling_asked_for(x) or is_every_call_observed():
        return None
    try:
        layer = describe()
    except _CHANGED:
        return None
    return whole.compute_downsampling(x, layer)


def _strided_conv(layer: nn.Module) -> list[Any]:
    conv = _unchanged(layer, ChannelsLastConv2d)
    settings = (conv.stride, conv.padding, conv.dilation, conv.groups, conv.padding_mode)
    # Its forward calls these two, which somebody may have replaced.
    methods = (nn.Conv2d.forward, type(conv)._conv_forward)
    if settings != ((2, 2), (1, 1), (1, 1), 1, "zeros") or methods != _CONVOLVE:
        raise _ChangedError
    return _parameters(conv, "weight", "bias")


def _weights(module: nn.Module) -> whole.Block:
    """Return the weights of a block.

    Raises:
        _ChangedError: It is not as it was built, drops something at random, or someone waits for the call of a layer.
        KeyError: It lacks a layer or a parameter.
    """
    block = _unchanged(module, *_FFN_NORMS)
    ffn_norm = _FFN_NORMS[type(block)]
    layers = block._modules  # not block.norm1 and so on, which takes a call of Python each
    scan = _unchanged(layers["scan"], SS2D, MS2D)
    scan_layers = scan._modules
    _unchanged(layers["drop_path"], DropPath)
    norm_first, half, out_norm = False, None, LayerNorm
    if type(scan) is MS2D:
        norm_first, half = not scan.merge_half, (_conv(scan_layers["half_conv"]), _s6(scan_layers["half_scan"]))
        out_norm = NormFirstFusion if norm_first else NormLastFusion
    return whole.Block(
        _norm(layers["norm1"]),
        _linear(scan_layers["in_proj"], HalvedLinear if scan.gated else Linear),
        scan.gated,
        (_conv(scan_layers["full_conv"]), _s6(scan_layers["full_scan"])),
        half,
        _norm(scan_layers["out_norm"], out_norm),
        norm_first,
        None if scan.se is None else _squeeze_excite(scan.se),
        _linear(scan_layers["out_proj"]),
        None if ffn_norm is None else _feed_forward(layers, ffn_norm),
    )


def _unchanged(layer: Any, *types: type[nn.Module]) -> Any:
    """Return a layer whose call does what the forward of one of these types does, and nothing else."""
    kind = type(layer)
    if (
        kind not in types
        or kind.forward is not _FORWARDS[kind]
        or not layer.__dict__.keys().isdisjoint(_METHODS)
        or layer._forward_hooks
        or layer._forward_pre_hooks
        or (layer.training and kind in (nn.Dropout, DropPath) and layer.p > 0)
    ):
        raise _ChangedError
    return layer


def _parameters(layer: nn.Module, *names: str) -> list[Any]:
    """Return parameters of a layer, None where it does without one.

    Raises:
        KeyError: One is no parameter of it any more.
    """
    found = layer._parameters
    return [found[name] for name in names]


def _norm(layer: nn.Module, kind: type[LayerNorm] = LayerNorm) -> whole.Norm:
    norm = _unchanged(layer, kind)
    weight, bias = _parameters(norm, "weight", "bias")
    return whole.Norm(weight, bias, norm.eps)


def _linear(layer: nn.Module, kind: type[Linear] = Linear) -> whole.Projection:
    weight, bias = _parameters(_unchanged(layer, kind), "weight", "bias")
    return whole.Projection(weight, bias)


def _conv(layer: nn.Module) -> whole.Conv:
    conv = _unchanged(layer, DepthwiseConv2d)
    weight, bias = _parameters(conv, "weight", "bias")
    return whole.Conv(weight, bias, conv.stride[0], conv.activation, conv.residual)


def _s6(layer: nn.Module) -> whole.SelectiveScan:
    s6 = _unchanged(layer, S6)
    W_dt, b_dt, A_log, Dskip = _parameters(s6, "dt_weight", "dt_bias", "A_log", "skip")
    return whole.SelectiveScan(_linear(s6._modules["x_proj"]), W_dt, b_dt, A_log, Dskip, s6.routes, s6.carry)


def _squeeze_excite(layer: nn.Module) -> tuple[whole.Projection, whole.Projection]:
    layers = _unchanged(layer, SqueezeExcite)._modules
    return _linear(layers["reduce"]), _linear(layers["expand"])


def _feed_forward(block_layers: dict[str, Any], norm: str) -> whole.FeedForward:
    ffn = _unchanged(block_layers["ffn"], ConvFFN, MLP)
    layers = ffn._modules
    _unchanged(layers["drop"], nn.Dropout)
    conv = _conv(layers["dwconv"]) if type(ffn) is ConvFFN else None
    norm2 = _norm(block_layers["norm2"])
    return whole.FeedForward(norm2, norm == "post", _linear(layers["fc1"]), conv, _linear(layers["fc2"]))
