"""Whole blocks on a GPU: kernels and products one after the other, for their result alone.

Kernels and products are those of the layers, and give the same bits. What is left out is what comes around them: calls
of modules, autograd, checks of arguments, which are made once for tensors of a kind, and a cast of each weight alone.
Where that is asked for, the launches are captured and replayed (graphs.py), since Python takes longer than the GPU.
"""

from collections.abc import Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import gelu, linear
from torch.profiler import record_function

from mmmsv.compat.torch_versions import get_autocast_dtype, is_autocast_enabled

from ...argument_checks import state_dtype
from ...arguments import ACTIVATIONS, LARGEST_STRIDE, DepthwiseConv, Gate, LayerNorm, MergeScales, Scan2d
from ...bypass import is_profiled, is_unobserved
from ...routes import ROUTES
from ...whole_block import Block, Conv, FeedForward, Norm, Projection, SelectiveScan
from . import conv, fused, graphs, norm, scan

_TENSOR = object()  # in the place of a tensor


def compute(x: Tensor, blocks: Sequence[Block]) -> Tensor | None:
    """Compute :func:`mmmsv.kernels.whole_block.compute`."""
    if x.dim() != 4 or x.numel() == 0:
        return None
    kinds = []
    for block in blocks:
        kind = _kind_of(x, block)
        if kind is None:
            return None
        kinds.append(kind)
    if is_profiled():
        with record_function("mmmsv::blocks"):
            return _compute(x, blocks)
    if not graphs.are_asked_for(x):
        return _compute(x, blocks)
    return graphs.replayed(x, blocks, _compute, tuple(map(_with_addresses, kinds)))


def _compute(x: Tensor, blocks: Sequence[Block]) -> Tensor:
    for block in blocks:
        x = _forward(x, _cast(block, x.dtype))
    return x


class _NotTakenError(Exception):
    """A block has what is not taken here."""


class _Kind(NamedTuple):
    tensors: list[Tensor]
    others: Any  # what a block has beside them
    autocast: torch.dtype | None


def _kind_of(x: Tensor, block: Block) -> _Kind | None:
    """Return all that decides what is launched for a block; None where the layers are to compute it.

    That is: where they would not compute it in the dtype of x, or something observes its weights.
    """
    from .launch import once

    tensors: list[Tensor] = []
    try:
        others = _split(block, tensors)
    except _NotTakenError:
        return None
    kind = x.device.type
    autocast = get_autocast_dtype(kind) if is_autocast_enabled(kind) else None
    if not is_unobserved(x, *tensors) or not all(each.device == x.device for each in tensors):
        return None
    if not once(_fits, (x, *tensors), others, autocast):
        return None
    return _Kind(tensors, others, autocast)


def _with_addresses(kind: _Kind) -> tuple[Any, ...]:
    """Return a kind as a graph is found by it: by where its tensors lie."""
    tensors, *others = kind
    return *others, *((each.data_ptr(), each.dtype, each.shape, each.stride()) for each in tensors)


def _split(value: Any, tensors: list[Tensor]) -> Any:
    """Return tuples without their tensors, which are collected.

    Raises:
        _NotTakenError: They hold what is neither a tensor nor a number, a name or None.
    """
    if isinstance(value, Tensor):
        if value.layout != torch.strided:  # it has no strides to ask about
            raise _NotTakenError
        tensors.append(value)
        return _TENSOR
    if isinstance(value, tuple):
        return _made_like(value, [_split(part, tensors) for part in value])
    if value is None or isinstance(value, str | int | float):
        return value
    raise _NotTakenError


def _joined(value: Any, tensors: Iterator[Tensor]) -> Any:
    """Put the tensors back that :func:`_split` has taken out."""
    if value is _TENSOR:
        return next(tensors)
    if isinstance(value, tuple):
        return _made_like(value, [_joined(part, tensors) for part in value])
    return value


def _made_like(value: Any, parts: Iterable[Any]) -> Any:
    """Return a tuple of the class of ``value``."""
    return value._make(parts) if hasattr(value, "_make") else tuple(parts)


def _fits(x: Tensor, *given: Any) -> bool:
    """Return whether the weights of a block have the dtypes and shapes that the layers compute with."""
    *tensors, others, autocast = given
    block = _joined(others, iter(tensors))
    weights = {tensor.dtype for tensor in tensors}
    if autocast is None:
        dtypes = x.dtype != torch.float16 and weights == {x.dtype}
    else:
        # A norm that is added to the block's input gives float32 under autocast, and the sum is float32 from there on.
        added = block.ffn is not None and block.ffn.post_norm
        dtypes = x.dtype == autocast == torch.bfloat16 and weights <= {torch.float32, x.dtype} and not added
    try:
        shapes = all(tuple(weight.shape) == shape for weight, shape in _shapes(block, x.shape[-1]))
    except (AttributeError, IndexError):  # of what is no tensor, or has too few axes
        return False
    return dtypes and shapes


def _shapes(block: Block, channels: int) -> Iterator[tuple[Tensor, tuple[int, ...]]]:
    """Yield the weights of a block, each with the shape that belongs to ``channels`` and to the others; or fail."""

    def of_norm(norm: Norm, channels: int) -> Iterator[tuple[Tensor, tuple[int, ...]]]:
        yield norm.weight, (channels,)
        yield norm.bias, (channels,)

    def of_layer(layer: Projection, inputs: int, outputs: int) -> Iterator[tuple[Tensor, tuple[int, ...]]]:
        yield layer.weight, (outputs, inputs)
        if layer.bias is not None:
            yield layer.bias, (outputs,)

    def of_conv(conv: Conv, channels: int, largest_stride: int) -> Iterator[tuple[Tensor, tuple[int, ...]]]:
        kernel, largest_stride = conv.weight.shape[-1], 1 if conv.residual else largest_stride
        if (
            kernel not in (3, 7)
            or conv.activation not in ACTIVATIONS
            or conv.stride not in range(1, largest_stride + 1)
        ):
            raise IndexError
        yield conv.weight, (channels, 1, kernel, kernel)
        if conv.bias is not None:
            yield conv.bias, (channels,)

    def of_scan(scan: SelectiveScan) -> Iterator[tuple[Tensor, tuple[int, ...]]]:
        rank, states = scan.W_dt.shape[2], scan.A_log.shape[2]
        if not scan.routes or any(route not in ROUTES for route in scan.routes) or not rank or not states:
            raise IndexError
        sets = 1 if scan.carry else len(scan.routes)
        yield from of_layer(scan.x_proj, inner, sets * (rank + 2 * states))
        yield scan.W_dt, (sets, inner, rank)
        yield scan.b_dt, (sets, inner)
        yield scan.A_log, (sets, inner, states)
        yield scan.Dskip, (sets, inner)

    inner = block.out_norm.weight.shape[0]
    yield from of_norm(block.norm1, channels)
    yield from of_layer(block.in_proj, channels, (1 + block.gated) * inner)
    yield from of_norm(block.out_norm, inner)
    yield from of_layer(block.out_proj, inner, channels)
    for scanned, largest_stride in ((block.full, 1), (block.half, LARGEST_STRIDE)):
        if scanned is not None:
            yield from of_conv(scanned[0], inner, largest_stride)
            yield from of_scan(scanned[1])
    if block.squeeze_excite is not None:
        reduce, expand = block.squeeze_excite
        squeezed = expand.weight.shape[1]
        yield from of_layer(reduce, inner, squeezed)
        yield from of_layer(expand, squeezed, inner)
    if block.ffn is not None:
        hidden = block.ffn.fc2.weight.shape[1]
        yield from of_norm(block.ffn.norm, channels)
        yield from of_layer(block.ffn.fc1, channels, hidden)
        yield from of_layer(block.ffn.fc2, hidden, channels)
        if block.ffn.conv is not None:
            yield from of_conv(block.ffn.conv, hidden, 1)


def _cast(block: Block, dtype: torch.dtype) -> Block:
    """Return a block whose weights of products have a dtype: cast all at once, where they have not."""
    weights = [each for layer in _layers(block) for each in layer if each is not None and each.dtype != dtype]
    if not weights:
        return block
    cast = [torch.empty_like(weight, dtype=dtype) for weight in weights]
    torch._foreach_copy_(cast, weights)
    new = dict(zip(map(id, weights), cast, strict=True))

    def replaced(value: Any) -> Any:
        if isinstance(value, Projection):
            return Projection(new.get(id(value.weight), value.weight), new.get(id(value.bias), value.bias))
        return _made_like(value, map(replaced, value)) if isinstance(value, tuple) else value

    return replaced(block)


def _layers(value: Any) -> Iterator[Projection]:
    if isinstance(value, Projection):
        yield value
    elif isinstance(value, tuple):
        for part in value:
            yield from _layers(part)


def _forward(x: Tensor, block: Block) -> Tensor:
    """Compute a block of a map, ``(batch, H, W, C)``."""
    normal, wide = _norm(x, block.norm1), state_dtype(x)
    to_value, to_gate = _halves(block.in_proj) if block.gated else (block.in_proj, None)
    value = linear(normal, *to_value)
    full = _scan(_conv(value, block.full[0]), block.full[1], merge=True)
    if block.half is None:
        y, mean = _norm(full, block.out_norm), None
    else:
        half = _scan(_conv(value, block.half[0]), block.half[1], merge=not block.norm_first)
        half = half if block.norm_first else half.unsqueeze(1)
        weight, bias, eps = block.out_norm
        given = MergeScales(full, half, weight.to(wide), bias.to(wide), eps, block.norm_first, x.dtype)
        y, mean, _ = fused.merge_scales(given)
    del value, full
    z = None if to_gate is None else linear(normal, *to_gate)
    squeezed = None
    if block.squeeze_excite is not None:
        reduce, expand = block.squeeze_excite
        mean = y.mean((1, 2)) if mean is None else mean
        squeezed = linear(linear(mean, *reduce).relu(), *expand).sigmoid().to(wide)
    if z is not None or squeezed is not None:
        y, _ = fused.gate(Gate(y, z, squeezed))
    x = x + linear(y, *block.out_proj)
    return x if block.ffn is None else x + _feed_forward(x, block.ffn)


def _halves(layer: Projection) -> tuple[Projection, Projection]:
    (first, second), biases = layer.weight.chunk(2), (None, None) if layer.bias is None else layer.bias.chunk(2)
    return Projection(first, biases[0]), Projection(second, biases[1])


def _norm(x: Tensor, given: Norm) -> Tensor:
    wide = state_dtype(x)
    y, _ = norm.layer_norm(LayerNorm(x, given.weight.to(wide), given.bias.to(wide), given.eps, x.dtype))
    return y


def _conv(x: Tensor, given: Conv) -> Tensor:
    wide = state_dtype(x)
    weight, bias = given.weight.to(wide), None if given.bias is None else given.bias.to(wide)
    y, _ = conv.depthwise_conv(DepthwiseConv(x, weight, bias, given.stride, given.activation, given.residual))
    return y


def _scan(x: Tensor, given: SelectiveScan, merge: bool) -> Tensor:
    wide, (sets, _, rank), states = state_dtype(x), given.W_dt.shape, given.A_log.shape[2]
    dt, B, C = linear(x, *given.x_proj).unflatten(-1, (sets, -1)).split((rank, states, states), -1)
    W_dt, b_dt, A_log, Dskip = (weight.to(wide) for weight in (given.W_dt, given.b_dt, given.A_log, given.Dskip))
    codes = [ROUTES.index(route) for route in given.routes]
    y, _ = scan.scan2d(Scan2d(x, dt, B, C, W_dt, b_dt, -A_log.exp(), Dskip, codes, given.carry, merge, True, 0, None))
    return y


def _feed_forward(x: Tensor, ffn: FeedForward) -> Tensor:
    hidden = linear(x if ffn.post_norm else _norm(x, ffn.norm), *ffn.fc1)
    hidden = gelu(hidden) if ffn.conv is None else _conv(hidden, ffn.conv)
    y = linear(hidden, *ffn.fc2)
    return _norm(y, ffn.norm) if ffn.post_norm else y
