"""The depthwise convolution by Triton kernels: chooses how they are launched."""

import torch
from torch import Tensor

from ...arguments import DepthwiseConv, ceil_div
from .maps import flat, strides, vector

# Tokens and channels of a tile, and tokens of a program: more where it sums over them.
_ROWS, _COLUMNS = 16, 64
_SPAN, _SUMMED_SPAN = 64, 512


def depthwise_conv(given: DepthwiseConv) -> tuple[Tensor, Tensor]:
    """Compute y; nothing is kept."""
    from .conv_kernels import conv_forward

    given = given._replace(x=flat(given.x))
    y, kept = given.new_results()
    if y.numel():
        with torch.cuda.device_of(y):
            conv_forward[_grid(y, _SPAN)](
                *(given.x, _by_tap(given.weight), given.bias, y),
                *(*strides(given.x), *strides(y), *_sizes(given, y), _SPAN),
                **_constants(given, y),
                ACTIVATION=given.activation,
                RESIDUAL=given.residual,
            )
    return y, kept


def depthwise_conv_backward(given: DepthwiseConv, dy: Tensor, kept: Tensor) -> tuple[Tensor | None, ...]:
    """Compute the gradients of x, weight and bias."""
    from .conv_kernels import conv_backward_activation, conv_backward_weight, conv_backward_x

    given = given._replace(x=flat(given.x))
    x, weight, bias, *_ = given
    dy = flat(dy.to(x.dtype))
    dx = x.new_empty(x.shape)
    channels, _, kernel, _ = weight.shape
    spans = ceil_div(dy.shape[1] * dy.shape[2], _SUMMED_SPAN)
    parts = weight.new_empty(len(x) * spans, kernel * kernel + 1, channels)
    if dy.numel():
        by_tap, dp = _by_tap(weight), dy
        with torch.cuda.device_of(dy):
            if given.activation != "none":
                dp = dy.new_empty(dy.shape)
                conv_backward_activation[_grid(dy, _SPAN)](
                    *(x, by_tap, bias, dy, dp),
                    *(*strides(x), *strides(dy), *strides(dp), *_sizes(given, dy), _SPAN),
                    **_constants(given, dy),
                    ACTIVATION=given.activation,
                    RESIDUAL=given.residual,
                )
            stride = given.stride
            conv_backward_x[(*_grid(dx[:, ::stride, ::stride], _SPAN), stride * stride)](
                *(by_tap, dp, dx),
                *(*strides(dx), *strides(dp), *_sizes(given, dp), _SPAN),
                **_constants(given, dp, dx),
                RESIDUAL=given.residual,
            )
            # As many lines of taps as sums fit in the registers.
            lines = kernel if kernel == 3 else 1
            conv_backward_weight[(*_grid(dp, _SUMMED_SPAN), kernel // lines)](
                *(x, dp, parts),
                *(*strides(x), *strides(dp), *_sizes(given, dp), _SUMMED_SPAN),
                **_constants(given, dp),
                LINES=lines,
            )
    sums = parts.sum(0)
    return dx, sums[:-1].t().reshape(weight.shape), sums[-1]


def _by_tap(weight: Tensor) -> Tensor:
    """Return a weight ``(D, 1, K, K)`` as ``(K * K, D)``."""
    return weight.flatten(1).t().contiguous()


def _grid(map_: Tensor, span: int) -> tuple[int]:
    batch, height, width, channels = map_.shape
    return (batch * ceil_div(height * width, span) * ceil_div(channels, _COLUMNS),)


def _sizes(given: DepthwiseConv, y: Tensor) -> tuple[int, ...]:
    return *given.x.shape[1:3], *y.shape[1:]


def _constants(given: DepthwiseConv, *maps: Tensor) -> dict[str, int]:
    return {
        "K": given.weight.shape[2],
        "STRIDE": given.stride,
        "VECTOR": vector(given.x, *maps),
        "ROWS": _ROWS,
        "COLUMNS": _COLUMNS,
        "num_warps": 4,
        "maxnreg": 128,  # else the assembler spills some, where that fits one more program on a multiprocessor
    }
