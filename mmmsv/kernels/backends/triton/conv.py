"""The depthwise convolution by Triton kernels: chooses how they are launched."""

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ...arguments import DepthwiseConv, ceil_div
from .maps import flat, optional, strides, vector

if TYPE_CHECKING:  # which imports Triton
    from .launch import Launch

# Groups of neighbours and channels of a tile, and groups of a program: more where it sums over them.
_ROWS, _COLUMNS = 8, 64
_SPAN, _SUMMED_SPAN = 16, 128


def depthwise_conv(given: DepthwiseConv) -> tuple[Tensor, Tensor]:
    """Compute y; nothing is kept."""
    x, _, bias, stride, activation, _ = given = _as_read(given)
    y, kept = given.new_results()
    if y.numel():
        factors = _factors(given)
        _convolve(x, factors, bias, None, y, stride, pad=factors.shape[-2] // 2, reach=0, activation=activation)
    return y, kept


def _convolve(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    added: Tensor | None,
    y: Tensor,
    stride: int,
    pad: int,
    reach: int,
    activation: str,
) -> None:
    """Launch the kernel ``convolve`` with a weight ``(spread, spread, K, K, D)``."""
    from .conv_kernels import convolve
    from .launch import launch

    launch(convolve, (x, weight, bias, added, y), _prepare_convolve, stride, pad, reach, activation)


def _prepare_convolve(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    added: Tensor | None,
    y: Tensor,
    stride: int,
    pad: int,
    reach: int,
    activation: str,
) -> "Launch":
    from .launch import Launch

    spread, _, kernel, _, _ = weight.shape
    width = _width(x, stride)
    lines, columns = (ceil_div(side, spread) for side in y.shape[1:3])
    return Launch(
        _programs(y, lines * ceil_div(columns, width), _SPAN, spread * spread),
        (*strides(x, added, y), *x.shape[1:3], *y.shape[1:], _SPAN),
        {
            **_constants(kernel, stride, width, x, y, added),
            "SPREAD": spread,
            "PAD": pad,
            "REACH": reach,
            "ACTIVATION": activation,
        },
    )


def depthwise_conv_backward(
    given: DepthwiseConv, dy: Tensor, kept: Tensor, dy_again: Tensor | None = None, dx_again: Tensor | None = None
) -> tuple[Tensor | None, ...]:
    """Compute the gradients of x, weight and bias; those that others give y and x are added."""
    from .conv_kernels import conv_backward_activation, conv_backward_weight
    from .launch import launch

    x, weight, bias, stride, activation, _ = given = _as_read(given)
    if dy_again is not None and activation == "none":  # no kernel reads dy to write what the others read
        dy, dy_again = dy + dy_again, None
    dy, dy_again, dx_again = flat(dy.to(x.dtype)), optional(dy_again, x.dtype), optional(dx_again, x.dtype)
    dx = x.new_empty(x.shape)
    if not dy.numel():
        return dx, torch.zeros_like(weight), None if bias is None else torch.zeros_like(bias)
    channels, _, kernel, _ = weight.shape
    groups = dy.shape[1] * ceil_div(dy.shape[2], _width(x, stride))
    parts = weight.new_empty(len(x) * ceil_div(groups, _SUMMED_SPAN), kernel * kernel + 1, channels)
    factors = _factors(given)
    dp = dy if activation == "none" else dy.new_empty(dy.shape)
    # Where the sums for all taps fit in the registers, the gradient of what goes into the activation is no pass of its
    # own.
    lines = kernel if kernel == 3 and x.element_size() < 8 else 1
    if lines < kernel and activation != "none":
        launch(conv_backward_activation, (x, factors, bias, dy, dy_again, dp), _prepare_activation, stride, activation)
        activation, dy_again = "none", None
    maps = (x, factors, bias, dy, dy_again, dp, parts)
    launch(conv_backward_weight, maps, _prepare_weight, stride, activation, lines)
    turned = _turned(factors[0, 0], stride)
    _convolve(dp, turned, None, dx_again, dx, 1, pad=turned.shape[-2] - 1, reach=kernel // 2, activation="none")
    sums = parts.sum(0)
    return dx, sums[:-1].t().reshape(weight.shape), None if bias is None else sums[-1]


def _prepare_activation(
    x: Tensor,
    factors: Tensor,
    bias: Tensor | None,
    dy: Tensor,
    dy_again: Tensor | None,
    dp: Tensor,
    stride: int,
    activation: str,
) -> "Launch":
    return _launch_backward(x, factors, dy, dy_again, dp, stride, activation, _SPAN, 1, {})


def _prepare_weight(
    x: Tensor,
    factors: Tensor,
    bias: Tensor | None,
    dy: Tensor,
    dy_again: Tensor | None,
    dp: Tensor,
    parts: Tensor,
    stride: int,
    activation: str,
    lines: int,
) -> "Launch":
    shared = factors.shape[-2] // lines
    return _launch_backward(x, factors, dy, dy_again, dp, stride, activation, _SUMMED_SPAN, shared, {"LINES": lines})


def _launch_backward(
    x: Tensor,
    factors: Tensor,
    dy: Tensor,
    dy_again: Tensor | None,
    dp: Tensor,
    stride: int,
    activation: str,
    span: int,
    shared: int,
    constants: dict[str, int],
) -> "Launch":
    from .launch import Launch

    maps, width = (x, dy, dy_again, dp), _width(x, stride)
    return Launch(
        _programs(dy, dy.shape[1] * ceil_div(dy.shape[2], width), span, shared),
        (*strides(*maps), *x.shape[1:3], *dy.shape[1:], span),
        {**_constants(factors.shape[-2], stride, width, *maps), **constants, "ACTIVATION": activation},
    )


def _as_read(given: DepthwiseConv) -> DepthwiseConv:
    return given._replace(x=flat(given.x), bias=None if given.bias is None else given.bias.contiguous())


def _factors(given: DepthwiseConv) -> Tensor:
    """Return what each tap is multiplied by, ``(1, 1, K, K, D)``; a residual is one more of the tap in the middle."""
    factors = given.weight.permute(1, 2, 3, 0).unsqueeze(0)
    if not given.residual:
        return factors.contiguous()
    factors, middle = factors.clone(memory_format=torch.contiguous_format), given.weight.shape[2] // 2
    factors[:, :, middle, middle] += 1
    return factors


def _turned(factors: Tensor, stride: int) -> Tensor:
    """Return the kernels that the gradient of x gathers with: one for each place within a stride, ``(S, S, T, T, D)``.

    A number of x is reached by those of the result by every S-th tap, from one on that depends on its place.
    """
    if stride == 1:
        return factors.flip(0, 1)[None, None]
    kernel, taps = len(factors), ceil_div(len(factors), stride)
    missing = stride * taps - kernel
    apart = torch.nn.functional.pad(factors, (0, 0, 0, missing, 0, missing)).unflatten(1, (taps, stride))
    by_first = apart.unflatten(0, (taps, stride)).permute(1, 3, 0, 2, 4).flip(2, 3)
    # The first tap that reaches place p is (p + K // 2) % S.
    return by_first.roll((-(kernel // 2),) * 2, (0, 1)).contiguous()


def _width(x: Tensor, stride: int) -> int:
    """Return how many neighbours of the result are computed at once, as registers allow."""
    return 1 if stride > 2 else 8 // x.element_size()


def _programs(map_: Tensor, groups: int, span: int, shared: int) -> int:
    return len(map_) * ceil_div(groups, span) * ceil_div(map_.shape[-1], _COLUMNS) * shared


def _constants(kernel: int, stride: int, width: int, *maps: Tensor | None) -> dict[str, int]:
    return {
        "K": kernel,
        "STRIDE": stride,
        "WIDTH": width,
        "VECTOR": vector(*maps),
        "ROWS": _ROWS,
        "COLUMNS": _COLUMNS,
        "num_warps": 2,
    }
