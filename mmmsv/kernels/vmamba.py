"""The cross scan and the cross merge, as programs call them that scan maps with a 1-D scan.

``scan2d`` needs neither, and makes no copies of the map: docs/use_the_scan.md turns one form into the other.
"""

from typing import Literal, NamedTuple

import torch
from torch import Tensor

from .argument_checks import check_bool

Scans = Literal[0, 1, 2, 3]


class _Walk(NamedTuple):
    """An order of the tokens of a map: mirror it along these of its two axes, then go line by line.

    Args:
        mirrored: 0 for the axis of the rows, 1 for that of the columns.
        by_column: Whether a line is a column; otherwise it is a row.
    """

    mirrored: tuple[int, ...] = ()
    by_column: bool = False


_ROW, _ROW_REVERSED = _Walk(), _Walk(mirrored=(0, 1))
_WALKS: dict[int, tuple[_Walk, ...]] = {
    0: (_ROW, _Walk(by_column=True), _ROW_REVERSED, _Walk((0, 1), by_column=True)),
    1: (_ROW, _ROW, _ROW, _ROW),
    2: (_ROW, _ROW, _ROW_REVERSED, _ROW_REVERSED),
    3: (_ROW, _Walk((1,), by_column=True), _ROW_REVERSED, _Walk((0,), by_column=True)),
}

# By whether the channels come before the rows: the axis of the rows of a map, and that of the four routes.
_ROWS_AXIS = {True: 2, False: 1}
_ROUTES_AXIS = {True: 1, False: -2}


def cross_scan(
    x: Tensor,
    in_channel_first: bool = True,
    out_channel_first: bool = True,
    one_by_one: bool = False,
    scans: Scans = 0,
    force_torch: bool = False,
) -> Tensor:
    """Walk a map along four routes, and return the four sequences.

    Args:
        x: Map, ``(B, C, H, W)``, or ``(B, H, W, C)`` without ``in_channel_first``; any dtype. With ``one_by_one``, a
            map for each route, ``(B, 4, C, H, W)`` or ``(B, H, W, 4, C)``.
        in_channel_first: Whether the channels of x come before its rows.
        out_channel_first: Whether the channels of the result come before its tokens.
        one_by_one: Whether each route has a map of its own.
        scans: The routes. 0: row by row, column by column, and both from the last token to the first. 1: row by row,
            four times. 2: row by row, twice, and from the last token to the first, twice. 3: row by row over the map
            as it is, and turned by 90, 180 and 270 degrees (``torch.rot90``).
        force_torch: Has no effect, since PyTorch computes this in any case. Callers pass it.

    Returns:
        ``(B, 4, C, L)``, or ``(B, L, 4, C)`` without ``out_channel_first``, contiguous, with L = H * W. The gradient
        of this function is :func:`cross_merge` with the same options, and the other way round.

    Raises:
        TypeError: x is no tensor, or a switch is no bool.
        ValueError: x has another number of axes, or ``scans`` is none of those above.

    Source:
        VMamba, arXiv 2401.10166. The arguments are those of VMamba's ``cross_scan_fn``.
    """
    op = "cross_scan"
    _check_options(op, in_channel_first, out_channel_first, one_by_one, scans, force_torch)
    _check_shape(op, "x", x, in_channel_first, four_maps=one_by_one)
    rows = _ROWS_AXIS[in_channel_first]
    maps = x.unbind(_ROUTES_AXIS[in_channel_first]) if one_by_one else (x,) * 4
    sequences = []
    for each, walk in zip(maps, _WALKS[scans], strict=True):
        lines = _mirror(each, rows, walk)
        lines = lines.transpose(rows, rows + 1) if walk.by_column else lines
        sequences.append(lines.flatten(rows, rows + 1))
    return _stack(sequences, in_channel_first, out_channel_first)


def cross_merge(
    y: Tensor,
    in_channel_first: bool = True,
    out_channel_first: bool = True,
    one_by_one: bool = False,
    scans: Scans = 0,
    force_torch: bool = False,
) -> Tensor:
    """Lay the sequences of four routes back onto the map, and return the sum of the four maps.

    Args:
        y: Sequences, ``(B, 4, C, H, W)``, or ``(B, H, W, 4, C)`` without ``out_channel_first``: those that
            :func:`cross_scan` returns or that were made of them, L seen as the sides of the map, H and W; any dtype.
        in_channel_first: Whether the channels come first in the map, which is the result here.
        out_channel_first: Whether the channels come first in y.
        one_by_one: Whether to return the four maps in the place of their sum.
        scans: As for :func:`cross_scan`.
        force_torch: Has no effect, as for :func:`cross_scan`.

    Returns:
        ``(B, C, L)``, or ``(B, L, C)`` without ``in_channel_first``; with ``one_by_one`` ``(B, 4, C, L)`` or
        ``(B, L, 4, C)``. It is contiguous, and in the dtype of y.

    Raises:
        TypeError: y is no tensor, or a switch is no bool.
        ValueError: y has another shape, or ``scans`` is none of those of :func:`cross_scan`.

    Source:
        VMamba, arXiv 2401.10166. The arguments are those of VMamba's ``cross_merge_fn``.
    """
    op = "cross_merge"
    _check_options(op, in_channel_first, out_channel_first, one_by_one, scans, force_torch)
    _check_shape(op, "y", y, out_channel_first, four_maps=True)
    rows = _ROWS_AXIS[out_channel_first]
    maps = []
    for each, walk in zip(y.unbind(_ROUTES_AXIS[out_channel_first]), _WALKS[scans], strict=True):
        height, width = each.shape[rows : rows + 2]
        if walk.by_column:
            each = each.flatten(rows, rows + 1).unflatten(rows, (width, height)).transpose(rows, rows + 1)
        maps.append(_mirror(each, rows, walk).flatten(rows, rows + 1))
    if one_by_one:
        return _stack(maps, out_channel_first, in_channel_first)
    merged = sum(maps[1:], start=maps[0])
    return (merged if in_channel_first == out_channel_first else merged.transpose(1, 2)).contiguous()


class CrossScan:
    """The older call of :func:`cross_scan`, with its default options: ``CrossScan.apply(x)``."""

    @staticmethod
    def apply(x: Tensor) -> Tensor:
        """Return ``(B, 4, C, L)`` for ``(B, C, H, W)``."""
        return cross_scan(x)


class CrossMerge:
    """The older call of :func:`cross_merge`, with its default options: ``CrossMerge.apply(y)``."""

    @staticmethod
    def apply(y: Tensor) -> Tensor:
        """Return ``(B, C, L)`` for ``(B, 4, C, H, W)``."""
        return cross_merge(y)


def _mirror(x: Tensor, rows: int, walk: _Walk) -> Tensor:
    return x.flip([rows + axis for axis in walk.mirrored]) if walk.mirrored else x


def _stack(sequences: list[Tensor], channel_first: bool, to_channel_first: bool) -> Tensor:
    """Put four ``(B, C, L)`` or ``(B, L, C)`` side by side, in the layout that is asked for."""
    if channel_first != to_channel_first:
        sequences = [each.transpose(1, 2) for each in sequences]
    return torch.stack(sequences, _ROUTES_AXIS[to_channel_first]).contiguous()


def _check_options(
    op: str, in_channel_first: bool, out_channel_first: bool, one_by_one: bool, scans: int, force_torch: bool
) -> None:
    check_bool(op, "in_channel_first", in_channel_first)
    check_bool(op, "out_channel_first", out_channel_first)
    check_bool(op, "one_by_one", one_by_one)
    check_bool(op, "force_torch", force_torch)
    if type(scans) is not int or scans not in _WALKS:
        raise ValueError(f"{op}: scans is {scans!r}, expected one of {tuple(_WALKS)}")


def _check_shape(op: str, name: str, maps: Tensor, channel_first: bool, four_maps: bool) -> None:
    if not isinstance(maps, Tensor):
        raise TypeError(f"{op}: {name} is a {type(maps).__name__}, expected a torch.Tensor")
    axes = ["B", "C", "H", "W"] if channel_first else ["B", "H", "W", "C"]
    if four_maps:
        axes.insert(1 if channel_first else 3, "4")
    if maps.dim() != len(axes) or (four_maps and maps.shape[_ROUTES_AXIS[channel_first]] != 4):
        raise ValueError(f"{op}: {name} has shape {tuple(maps.shape)}, expected ({', '.join(axes)})")
