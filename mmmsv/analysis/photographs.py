"""Read photographs, and bring them to the size that a figure is made at."""

import sys
from collections.abc import Callable, Collection, Iterable, Iterator
from dataclasses import dataclass
from math import floor
from pathlib import Path
from typing import Literal, TypeVar

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps, UnidentifiedImageError
from rich.console import Console
from rich.progress import track

# Sides are multiples of this: of the stride of the last stage, so that each token has its patch of the photograph.
STRIDE = 32
SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff")
Fit = Literal["whole", "square"]
T = TypeVar("T")


@dataclass(frozen=True)
class Photograph:
    """A photograph at the size that a network gets it at.

    Args:
        name: Of its file, without suffix.
        pixels: ``(H, W, 3)`` uint8, RGB.
        size: Width and height of the file, in pixels.
        scale: Pixels here for one of the file, along x and y.
        offset: Pixels of the file that were cut off at the left and at the top.
    """

    name: str
    pixels: NDArray[np.uint8]
    size: tuple[int, int]
    scale: tuple[float, float] = (1.0, 1.0)
    offset: tuple[float, float] = (0.0, 0.0)

    @property
    def shape(self) -> tuple[int, int]:
        """H and W of :attr:`pixels`."""
        return self.pixels.shape[0], self.pixels.shape[1]

    def locate(self, query: tuple[int, int] | None) -> tuple[int, int]:
        """Find a pixel of the file in :attr:`pixels`.

        Args:
            query: x and y in the file, from the top left corner; None is the centre.

        Returns:
            Its row and column in :attr:`pixels`.

        Raises:
            ValueError: It is outside the picture, or was cut off.
        """
        if query is None:
            return self.shape[0] // 2, self.shape[1] // 2
        width, height = self.size
        x, y = query
        if not (0 <= x < width and 0 <= y < height):
            raise ValueError(
                f"the query ({x}, {y}) is outside {self.name}, which is {width} x {height} pixels: give x in "
                f"0..{width - 1} and y in 0..{height - 1}"
            )
        row, column = (
            floor((at + 0.5 - cut) * scale)
            for at, scale, cut in ((y, self.scale[1], self.offset[1]), (x, self.scale[0], self.offset[0]))
        )
        if not (0 <= row < self.shape[0] and 0 <= column < self.shape[1]):
            raise ValueError(f"the query ({x}, {y}) is outside the square that is cut out of the middle of {self.name}")
        return row, column


def _note(sentence: str) -> None:
    print(sentence, file=sys.stderr)


def find_photographs(path: str | Path) -> list[Path]:
    """List the photographs of a folder, in the order of their names; of a file, it alone.

    Raises:
        ValueError: There is no such file or folder, or no photograph in it.
    """
    path = Path(path)
    if path.is_file():
        return [path]
    if not path.is_dir():
        raise ValueError(f"there is no photograph {path}; give the path of a photograph, or of a folder of them")
    found = sorted(one for one in path.rglob("*") if one.suffix.lower() in SUFFIXES and one.is_file())
    if not found:
        raise ValueError(f"the folder {path} holds no photograph, that is no file with {', '.join(SUFFIXES)}")
    return found


def read_photograph(path: str | Path, size: int, fit: Fit, note: Callable[[str], None] = _note) -> Photograph:
    """Read a photograph at a size.

    Args:
        path: Of the file. It is turned upright, as its EXIF data says. A grey one gets three equal channels.
        size: Side in pixels, a multiple of 32.
        fit: ``'whole'``: the long side becomes ``size``, and the short one the multiple of 32 that is nearest;
            ``'square'``: the short side becomes ``size``, and the middle of the long one is kept.
        note: Called with one sentence where a grey photograph was converted.

    Raises:
        ValueError: The file is missing, or no photograph, has transparent parts, or has more than 8 bits for each grey
            pixel; or the size is not allowed.
    """
    if size < STRIDE or size % STRIDE:
        raise ValueError(f"the size is {size}, expected a multiple of {STRIDE}, such as 512")
    try:
        with Image.open(path) as file:
            image = ImageOps.exif_transpose(file)
            image.load()
    except FileNotFoundError as error:
        raise ValueError(f"there is no photograph {path}; give the path of a photograph") from error
    except (UnidentifiedImageError, OSError, SyntaxError, Image.DecompressionBombError) as error:
        raise ValueError(f"{path} cannot be read as a photograph ({error}); give a JPEG, PNG or WebP file") from error
    if image.mode.startswith(("I", "F")):  # PIL would cut what is above 255 off
        raise ValueError(f"{path} has more than 8 bits for each grey pixel ({image.mode}); save it with 8 bits")
    if image.has_transparency_data:
        if np.asarray(image.convert("RGBA"))[..., 3].min() < 255:
            raise ValueError(
                f"{path} has transparent parts ({image.mode}); put it onto a background, and save it as RGB"
            )
    elif image.mode not in ("RGB", "P", "CMYK", "YCbCr", "LAB", "HSV"):
        note(f"{path} is grey ({image.mode}): its three channels are made equal")
    whole = image.convert("RGB")
    width, height = whole.size
    if fit == "square":
        part_width = part_height = min(width, height)
        new_width = new_height = size
    else:
        part_width, part_height = width, height
        new_width, new_height = (
            max(STRIDE, round(side * size / max(width, height) / STRIDE) * STRIDE) for side in (width, height)
        )
    left, top = (width - part_width) / 2, (height - part_height) / 2
    box = (left, top, left + part_width, top + part_height)
    pixels = np.asarray(whole.resize((new_width, new_height), Image.Resampling.BICUBIC, box))
    scale = (new_width / part_width, new_height / part_height)
    return Photograph(Path(path).stem, pixels, (width, height), scale, (left, top))


def read_photographs(path: str | Path, size: int, fit: Fit) -> list[Photograph]:
    """Read a photograph, or those of a folder; arguments and errors of :func:`read_photograph`."""
    return [read_photograph(one, size, fit) for one in find_photographs(path)]


def of_one_size(photographs: Iterable[Photograph]) -> Iterator[Photograph]:
    """Go through photographs that are averaged over.

    Raises:
        ValueError: One has another size than the first.
    """
    size = None
    for photograph in photographs:
        size = size or photograph.shape
        if photograph.shape != size:
            raise ValueError(f"{photograph.name} has {photograph.shape} pixels (H, W), and the first photograph {size}")
        yield photograph


def check_names(photographs: Collection[Photograph]) -> None:
    """Check that photographs, each of which gets a figure of its own, have names of their own.

    Raises:
        ValueError: Two have one name, so that one figure would replace the other.
    """
    names = [photograph.name for photograph in photographs]
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise ValueError(
            f"several photographs are called {', '.join(twice)}, and so would their figures be; rename them"
        )


def with_queries(
    photographs: Collection[Photograph], query: tuple[int, int] | None
) -> list[tuple[Photograph, tuple[int, int]]]:
    """Pair photographs, each of which gets a figure of its own, with the row and column of a pixel of their files.

    Args:
        photographs: The photographs.
        query: As for :meth:`Photograph.locate`.

    Raises:
        ValueError: The pixel is outside one of them; or as :func:`check_names`.
    """
    check_names(photographs)
    return [(photograph, photograph.locate(query)) for photograph in photographs]


def describe(photographs: Collection[Photograph]) -> str:
    """Say in a title which photographs there are: the name of one, or their number."""
    return next(iter(photographs)).name if len(photographs) == 1 else f"mean of {len(photographs)} photographs"


def with_progress(items: Collection[T], title: str) -> Iterator[T]:
    """Go through photographs, and show on stderr how far that is, on a terminal and if there are several."""
    console = Console(stderr=True)
    yield from track(items, title, console=console, disable=len(items) < 2 or not console.is_terminal)
