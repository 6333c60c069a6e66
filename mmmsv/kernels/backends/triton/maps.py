"""How the Triton kernels read maps ``(batch, H, W, D)``."""

import torch
from torch import Tensor

from ...strides import last_axis_innermost

_LARGEST = (1 << 31) - 1
# Of kernels whose tiles have all channels of a token: numbers of a tile for a warp, and tokens of a program, about. As
# many parts are summed afterwards.
_TILE, SPAN = 1024, 64


def flat(map_: Tensor) -> Tensor:
    """Return a map ``(batch, [routes,] H, W, D)`` with tokens at one distance, channels innermost: usually itself."""
    map_ = last_axis_innermost(map_)
    *_, row, token, _ = map_.stride()
    return map_ if row == map_.shape[-2] * token or map_.shape[-3] == 1 else map_.contiguous()


def for_routes(tensor: Tensor, routes: int) -> Tensor:
    """View what each token has for each set, ``(batch, H, W, S, *)``, as ``(batch, routes, tokens, *)``."""
    batch, height, width, sets, columns = tensor.shape
    image, row, token, route, column = tensor.stride()
    apart = (row != width * token and height > 1 < width) or (column != 1 and columns > 1)
    if apart and tensor.numel():  # one without numbers has any strides, and keeps them
        return for_routes(tensor.contiguous(), routes)
    # One call of torch, for four.
    size = batch, routes, height * width, columns
    return tensor.as_strided(size, (image, 0 if sets == 1 else route, token if width > 1 else row, 1))


def optional(map_: Tensor | None, dtype: torch.dtype) -> Tensor | None:
    """Return a map that need not be given as :func:`flat` does, in a dtype."""
    return None if map_ is None else flat(map_.to(dtype))


def strides(*maps: Tensor | None) -> tuple[int, ...]:
    """Return the distances between images, routes and tokens of each map, ``(batch, [routes,] H, W, D)``.

    In the place of a map ``(batch, H, W, D)`` that is not given, zeros.

    Raises:
        ValueError: An image has more numbers than the kernels' offsets of 32 bits reach.
    """
    return tuple(number for map_ in maps for number in _strides_of(map_))


def _strides_of(map_: Tensor | None) -> tuple[int, ...]:
    if map_ is None:
        return 0, 0
    *outer, row, token, _ = map_.stride()
    token = token if map_.shape[-2] > 1 else row
    extent = sum(size * stride for size, stride in zip(map_.shape[1:-1], map_.stride()[1:-1], strict=True))
    # Of each token, two moments of a norm are kept as well.
    if max(extent, 2 * map_.shape[1:-1].numel()) > _LARGEST:
        raise ValueError(
            f"an image of a map {tuple(map_.shape)} has more than {_LARGEST} numbers, which backend 'triton' does not "
            "reach; cut it, or choose backend 'torch'"
        )
    return *outer, token


def vector(*maps: Tensor | None) -> int:
    """Return how many neighbouring channels can be read at once, so that no read is of more than 16 bytes."""
    given = [map_ for map_ in maps if map_ is not None]
    most = 16 // max(map_.element_size() for map_ in given)
    while most > 1 and any(
        map_.data_ptr() % (most * map_.element_size())
        or any(number % most for number in (map_.shape[-1], *map_.stride()[:-1]))
        for map_ in given
    ):
        most //= 2
    return most


def whole_tokens(x: Tensor, *others: Tensor | None) -> dict[str, int | None]:
    """Return the constants of a kernel whose tiles have all channels of a token."""
    columns = 1 << (x.shape[-1] - 1).bit_length()
    warps = 2 if columns <= 512 else 4
    # Of two tokens at least: Triton 3.6 takes an axis of one away, and fails at what is said of it.
    return {
        "VECTOR": vector(x, *others),
        "ROWS": max(_TILE * warps // columns, 2),
        "COLUMNS": columns,
        "num_warps": warps,
        "maxnreg": 255 if columns > 1024 else None,  # else the assembler spills some
    }
