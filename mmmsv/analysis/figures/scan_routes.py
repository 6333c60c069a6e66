"""Draw the routes of scans over a small grid, as a still and as an animation."""

import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize, to_rgba_array
from matplotlib.figure import Figure, SubFigure
from matplotlib.image import AxesImage
from matplotlib.lines import Line2D
from matplotlib.patheffects import withStroke
from numpy.typing import ArrayLike, NDArray
from PIL import Image

from mmmsv.models.ms2d import Scan2D

from ..routes import GridSequence, grid_sequences
from .style import COLOUR_MAP, NO_VALUE, QUERY, TITLE, new_figure, styled

_BEHIND = "#f2f2f2"  # of the panels of one sequence
_LINE, _EDGE = "white", "#303030"
_TALLEST = 3.2  # inches that a grid has at most
_PIXELS = 900  # width of the animation
_STEP, _PAUSE = 150, 2000  # milliseconds of a visit, and of the whole picture at the end
_PLACES, _GREYS = 96, 28  # colours of the animation, besides QUERY, NO_VALUE and so on
_OUTLINE = (withStroke(linewidth=3.4, foreground=_EDGE),)
_HEAD = {"marker": "o", "ms": 9, "mfc": QUERY, "mec": "white", "mew": 1.5, "ls": "none"}
_MARKS = {
    "starts with a state of 0": {"marker": "o", "ms": 8, "mfc": "white", "mec": _EDGE, "mew": 1.5, "ls": "none"},
    "ends": {"marker": "s", "ms": 8, "mfc": _EDGE, "mec": "white", "mew": 1.5, "ls": "none"},
}


@styled()
def draw(scans: Mapping[str, Scan2D], rows: int, columns: int) -> Figure:
    """Draw the routes of 2-D scans: each token in the colour of its place in the sequence, and a line through them.

    Args:
        scans: By their titles; a line of panels for each, one panel for each route. A token of lower resolution covers
            the tokens that it stands for.
        rows: Of the grid, 4 to 12.
        columns: The same.

    Raises:
        ValueError: The grid is too small or too large.
    """
    figure, panels = _make(scans, rows, columns)
    for panel in panels:
        panel.show(panel.begin + len(panel.tokens))
        panel.mark()
    return figure


@styled()
def animate(scans: Mapping[str, Scan2D], rows: int, columns: int) -> bytes:
    """Make an animation of :func:`draw`, in which all sequences start at once, and each frame is a visit of each.

    Returns:
        A GIF, 900 pixels wide, that begins anew when it ends.

    Raises:
        ValueError: The grid is too small or too large.
    """
    figure, panels = _make(scans, rows, columns)
    figure.set_dpi(_PIXELS / figure.get_figwidth())
    canvas = FigureCanvasAgg(figure)
    for _ in range(2):  # the first layout does not yet know how large the texts are
        canvas.draw()
    figure.set_layout_engine("none")  # as it is now
    heads = [panel.axes.plot([], [], **_HEAD, zorder=5)[0] for panel in panels]
    frames = []
    for visits in range(1, max(panel.begin + len(panel.tokens) for panel in panels) + 1):
        for panel, head in zip(panels, heads, strict=True):
            head.set_data(*panel.show(visits))
        frames.append(_picture(canvas))
    for panel, head in zip(panels, heads, strict=True):
        head.remove()
        panel.mark()
    frames.append(_picture(canvas))
    palette = _palette()
    first, *others = (frame.quantize(palette=palette, dither=Image.Dither.NONE) for frame in frames)
    content = io.BytesIO()
    durations = [*[_STEP] * len(others), _PAUSE]
    first.save(content, "GIF", save_all=True, append_images=others, duration=durations, loop=0, optimize=True)
    return content.getvalue()


def route_arrays(sequences: Sequence[GridSequence]) -> dict[str, ArrayLike]:
    """Name the arrays of a scan's sequences, for the ``.npz``."""
    arrays: dict[str, ArrayLike] = {}
    for i, sequence in enumerate(sequences):
        arrays[f"sequence{i}_routes"] = sequence.routes
        arrays[f"sequence{i}_stride"] = sequence.stride
        arrays[f"sequence{i}_tokens"] = np.concatenate(sequence.tokens)
    return arrays


@dataclass(frozen=True)
class _Panel:
    """A grid with one route.

    Args:
        axes: It is drawn on.
        image: The squares of the tokens.
        lines: Through tokens that are neighbours, and from the end of a row or column to the next.
        tokens: Row and column in the order of the visits, ``(T, 2)``.
        size: H and W of the map.
        stride: Of the map on the grid.
        grid: H and W of the grid.
        begin: How many visits of the sequence came before.
        ends: Whether the sequence ends here.
    """

    axes: Axes
    image: AxesImage
    lines: tuple[Line2D, Line2D]
    tokens: NDArray[np.int64]
    size: tuple[int, int]
    stride: int
    grid: tuple[int, int]
    begin: int
    ends: bool

    def show(self, visits: int) -> tuple[NDArray, NDArray]:
        """Show so many visits of the sequence; return x and y of the token that is visited now, if it is here."""
        here = min(max(visits - self.begin, 0), len(self.tokens))
        places = np.full(self.size, np.nan)
        places[tuple(self.tokens[:here].T)] = self.begin + 1 + np.arange(here)
        self.image.set_data(np.ma.masked_invalid(places))
        points = self._centres(self.tokens[:here])
        for line, wanted in zip(self.lines, (True, False), strict=True):
            line.set_data(*_joined(points, self._neighbours(here) == wanted))
        return (*points[here - 1 : here].T,) if visits <= self.begin + here else points[:0].T

    def mark(self) -> None:
        """Mark where the sequence starts and ends, and the directions."""
        points, neighbours = self._centres(self.tokens), self._neighbours(len(self.tokens))
        last = neighbours & ~np.append(neighbours[1:], False)  # before the end of each row or column
        if last.any():
            before, after = points[:-1][last], points[1:][last]
            x, y = (after - before)[0]
            arrow = (3, 0, float(np.degrees(np.arctan2(-y, x))) - 90)  # a triangle, which points upwards, turned
            middle = ((before + after) / 2).T
            self.axes.plot(*middle, marker=arrow, ms=8, mfc=_LINE, mec=_EDGE, mew=0.8, ls="none", zorder=3)
        for at, wanted, style in zip((0, -1), (self.begin == 0, self.ends), _MARKS.values(), strict=True):
            if wanted:
                self.axes.plot(*points[at], **style, zorder=4)

    def _centres(self, tokens: NDArray[np.int64]) -> NDArray[np.floating]:
        """Return x and y of tokens on the grid, in the middle of what they cover of it."""
        first = tokens * self.stride
        last = np.minimum(first + self.stride, self.grid) - 1
        return ((first + last) / 2)[:, ::-1]

    def _neighbours(self, visits: int) -> NDArray[np.bool_]:
        """Return whether each visit but the last is followed by that of a neighbour."""
        return np.abs(np.diff(self.tokens[:visits], axis=0)).sum(1) == 1


def _make(scans: Mapping[str, Scan2D], rows: int, columns: int) -> tuple[Figure, list[_Panel]]:
    """Lay out the panels of all scans, with no token visited."""
    sequences_of = {title: grid_sequences(scan, rows, columns) for title, scan in scans.items()}
    most = max(sum(len(sequence.routes) for sequence in sequences) for sequences in sequences_of.values())
    height = min(7.8 / max(most, 3) * rows / columns, _TALLEST) + 0.95
    figure = new_figure(f"The order in which scans visit {rows} x {columns} tokens", height * len(sequences_of) + 1.0)
    norm = Normalize(1, max(sequence.length for sequences in sequences_of.values() for sequence in sequences))
    ratios = [*[height] * len(sequences_of), 0.7]
    *lines, foot = figure.subfigures(len(ratios), 1, height_ratios=ratios, squeeze=False)[:, 0]
    panels = []
    for line, (title, sequences) in zip(lines, sequences_of.items(), strict=True):
        steps = sum(sequence.length for sequence in sequences)
        line.suptitle(f"{title}: {steps} steps", fontsize=TITLE, weight="bold")
        widths = [len(sequence.routes) for sequence in sequences]
        parts = line.subfigures(1, len(sequences), width_ratios=widths, wspace=0.02, squeeze=False)[0]
        for part, sequence in zip(parts, sequences, strict=True):
            panels += _make_sequence(part, sequence, (rows, columns), norm)
    _make_foot(foot, norm)
    return figure, panels


def _make_sequence(part: SubFigure, sequence: GridSequence, grid: tuple[int, int], norm: Normalize) -> list[_Panel]:
    part.set_facecolor(_BEHIND)
    one = ", one sequence: the state runs on from route to route" if len(sequence.routes) > 1 else ""
    part.suptitle(f"{sequence.resolution}{one}", fontsize=TITLE)
    panels, begin = [], 0
    all_axes = part.subplots(1, len(sequence.routes), squeeze=False)[0]
    for axes, route, tokens in zip(all_axes, sequence.routes, sequence.tokens, strict=True):
        end = begin + len(tokens)
        axes.set_title(f"{chr(0x2192) + ' ' if begin else ''}{route}, {begin + 1} to {end}")
        image, lines = _make_grid(axes, sequence, grid, norm)
        ends = end == sequence.length
        panels.append(_Panel(axes, image, lines, tokens, sequence.size, sequence.stride, grid, begin, ends))
        begin = end
    return panels


def _make_grid(
    axes: Axes, sequence: GridSequence, grid: tuple[int, int], norm: Normalize
) -> tuple[AxesImage, tuple[Line2D, Line2D]]:
    (height, width), stride = sequence.size, sequence.stride
    axes.set_facecolor(NO_VALUE)
    extent = (-0.5, width * stride - 0.5, height * stride - 0.5, -0.5)
    image = axes.imshow(np.ma.masked_all((height, width)), cmap=COLOUR_MAP, norm=norm, extent=extent)
    for side, last, draw_line in ((grid[0], height, axes.axhline), (grid[1], width, axes.axvline)):
        for at in range(1, side):
            draw_line(at - 0.5, color=_BEHIND, lw=0.4)
        for at in range(1, last):
            draw_line(at * stride - 0.5, color=_BEHIND, lw=1.2 if stride == 1 else 2.4)
    axes.set(xlim=(-0.5, grid[1] - 0.5), ylim=(grid[0] - 0.5, -0.5), xticks=[], yticks=[])
    (along,) = axes.plot([], [], color=_LINE, lw=2, path_effects=_OUTLINE, zorder=2)
    (across,) = axes.plot([], [], color=_LINE, lw=0.9, ls=(0, (3, 2)), zorder=2)
    return image, (along, across)


def _make_foot(foot: SubFigure, norm: Normalize) -> None:
    """Draw the scale, and what the marks mean."""
    left, right = foot.subplots(1, 2)
    left.set_axis_off()
    handles = [Line2D([], [], label=label, **style) for label, style in _MARKS.items()]
    left.legend(handles=handles, loc="center", ncols=2, frameon=False)
    foot.colorbar(ScalarMappable(norm, COLOUR_MAP), cax=right, orientation="horizontal", label="place in the sequence")


def _joined(points: NDArray[np.floating], which: NDArray[np.bool_]) -> tuple[NDArray, NDArray]:
    """Return x and y of a line that joins some points with the next one, and is broken elsewhere."""
    ends = np.stack((points[:-1], points[1:]), 1)[which]
    broken = np.concatenate((ends, np.full((len(ends), 1, 2), np.nan)), 1).reshape(-1, 2)
    return broken[:, 0], broken[:, 1]


def _palette() -> Image.Image:
    """Return a picture with the colours of the animation."""
    named = to_rgba_array([QUERY, NO_VALUE, _BEHIND, _EDGE])
    greys = np.linspace(0, 1, _GREYS)[:, None].repeat(4, 1)
    colours = np.concatenate((colormaps[COLOUR_MAP](np.linspace(0, 1, _PLACES)), greys, named))[:, :3]
    palette = Image.new("P", (1, 1))
    palette.putpalette((colours * 255).round().astype(np.uint8).tobytes())
    return palette


def _picture(canvas: FigureCanvasAgg) -> Image.Image:
    canvas.draw()
    return Image.fromarray(np.asarray(canvas.buffer_rgba())).convert("RGB")
