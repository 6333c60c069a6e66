"""Save a figure and the arrays that it shows."""

import io
from collections.abc import Iterable, Mapping
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import ArrayLike

from mmmsv.whole_files import write_whole

from .style import styled


def save(figure: Figure, arrays: Mapping[str, ArrayLike], folder: str | Path, name: str) -> Path:
    """Save a figure as PNG and SVG, and its arrays as ``.npz``; the same content gives the same files.

    Args:
        figure: The figure.
        arrays: By name; numbers and texts, too.
        folder: Made where it is missing.
        name: Of the files, without suffix.

    Returns:
        The path of the PNG.

    Raises:
        ValueError: The folder cannot be written to.
    """
    folder = Path(folder)
    for suffix in (".png", ".svg"):
        write(folder / (name + suffix), as_bytes(figure, suffix[1:]))
    content = io.BytesIO()
    # pyrefly: ignore[bad-argument-type]: no array is called allow_pickle
    np.savez_compressed(content, **{key: np.asarray(value) for key, value in arrays.items()})
    write(folder / f"{name}.npz", content.getvalue())
    return folder / f"{name}.png"


def write(path: Path, content: bytes) -> Path:
    """Write a file, and make its folder where it is missing; return its path.

    Raises:
        ValueError: The folder cannot be written to.
    """
    try:
        write_whole(path, content)
    except OSError as error:
        raise ValueError(f"{path.parent} cannot be written to ({error}); give another folder") from error
    return path


def numbered(each: Iterable[Mapping[str, ArrayLike]]) -> dict[str, ArrayLike]:
    """Name the arrays of several networks: those of the first begin with ``0_``, and so on."""
    return {f"{i}_{key}": value for i, arrays in enumerate(each) for key, value in arrays.items()}


def as_bytes(figure: Figure, kind: str, density: float = 1.0) -> bytes:
    """Return the file of a figure, ``'png'`` or ``'svg'``, without a date in it.

    Args:
        figure: The figure.
        kind: Of file.
        density: How many times its usual pixels a PNG has along a side.
    """
    content = io.BytesIO()
    metadata = {"Software": None} if kind == "png" else {"Date": None, "Creator": None}
    with styled():
        figure.savefig(content, format=kind, metadata=metadata, dpi=density * figure.dpi)
    return content.getvalue()
