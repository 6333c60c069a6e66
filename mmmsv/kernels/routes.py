"""Routes: the orders in which a scan visits the tokens of a map."""

from typing import Literal, get_args

from torch import Tensor, cat

Route = Literal["row", "col", "row_rev", "col_rev"]
ROUTES: tuple[Route, ...] = get_args(Route)

_COLUMN_MAJOR = {"row": False, "row_rev": False, "col": True, "col_rev": True}
_REVERSED = {"row": False, "row_rev": True, "col": False, "col_rev": True}


def unroll(x: Tensor, routes: tuple[Route, ...]) -> Tensor:
    """Walk a map along each route in turn, and put the walks behind each other.

    Args:
        x: Map, ``(B, H, W, C)``.
        routes: ``'row'`` is row-major, ``'col'`` column-major, ``'row_rev'`` and ``'col_rev'`` are their reversals.

    Returns:
        ``(B, len(routes) * H * W, C)``; for the single route ``'row'`` a view of ``x``.
    """
    walks = []
    for route in routes:
        walk = (x.transpose(1, 2) if _COLUMN_MAJOR[route] else x).flatten(1, 2)
        walks.append(walk.flip(1) if _REVERSED[route] else walk)
    return walks[0] if len(walks) == 1 else cat(walks, dim=1)


def roll_up(tokens: Tensor, routes: tuple[Route, ...], height: int, width: int) -> Tensor:
    """Cut what :func:`unroll` put behind each other, lay each walk back onto the map, and sum the maps.

    Args:
        tokens: ``(B, len(routes) * height * width, C)``.
        routes: Those of :func:`unroll`.
        height: Rows of the map.
        width: Columns of the map.

    Returns:
        ``(B, height, width, C)``.
    """
    maps = []
    for route, walk in zip(routes, tokens.chunk(len(routes), dim=1), strict=True):
        walk = walk.flip(1) if _REVERSED[route] else walk
        sides = (width, height) if _COLUMN_MAJOR[route] else (height, width)
        one = walk.unflatten(1, sides)
        maps.append(one.transpose(1, 2) if _COLUMN_MAJOR[route] else one)
    return sum(maps[1:], start=maps[0])
