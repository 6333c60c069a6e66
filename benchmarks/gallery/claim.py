"""Measure what MSVMamba argues from, for networks with SS2D and with MS2D that were trained with equal budgets.

The paper (arXiv 2405.14174) says that the decays along rows and along columns differ by more than 10 times for more
than 40 % of the tokens, which Figure 2 shows for VMamba-Tiny, and that scans at half the resolution keep more of far
tokens, which Figure 4 shows. Here are both numbers for the last block of each stage and for photographs of several
sizes.
"""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path

import numpy as np

from mmmsv.analysis.decay import RouteDecay, decay_maps, join_axes
from mmmsv.analysis.networks import Network
from mmmsv.analysis.photographs import Photograph, find_photographs, read_photograph

# The paper takes 50 photographs.
NUMBER = 50
SIZES = (224, 512, 1024)
HEADER = (
    "| size | stage | tokens | ratio above 10: SS2D | MS2D | decay to the last token: SS2D | MS2D, full | MS2D, half |",
    "| --- | --- | --- | --- | --- | --- | --- | --- |",
)


@dataclass(frozen=True)
class Row:
    """What is measured for the last block of a stage, for photographs of one size.

    Args:
        size: Side of the photographs.
        stage: The stage, from 0 on.
        side: Side of its map, in tokens.
        shares: By network: share of the tokens whose ratio is above 10.
        means: By network and resolution: mean decay to the token that a route visits last.
    """

    size: int
    stage: int
    side: int
    shares: Mapping[str, float]
    means: Mapping[tuple[str, str], float]


def measure(networks: Mapping[str, Network], folder: Path, sizes: Iterable[int] = SIZES) -> Iterator[Row]:
    """Measure networks on photographs of a folder with a folder for each class, as many of each class."""
    classes = [list(each) for _, each in groupby(find_photographs(folder), key=lambda path: path.parent)]
    chosen = [path for each in classes for path in each[: NUMBER // len(classes)]]
    for size in sizes:
        photographs = [read_photograph(path, size, "square") for path in chosen]
        for stage in range(4):
            yield _row(networks, photographs, size, stage)


def as_markdown(rows: Iterable[Row]) -> str:
    """Lay rows out as a table."""
    columns = (("SS2D", "full resolution"), ("MS2D", "full resolution"), ("MS2D", "1/2 resolution"))
    lines = [
        f"| {row.size} | {row.stage} | {row.side} x {row.side} | "
        + " | ".join(f"{100 * row.shares[name]:.1f} %" for name in ("SS2D", "MS2D"))
        + " | "
        + " | ".join(f"{row.means[column]:.3f}" for column in columns)
        + " |"
        for row in rows
    ]
    return "\n".join((*HEADER, *lines))


def _row(networks: Mapping[str, Network], photographs: list[Photograph], size: int, stage: int) -> Row:
    shares, means, side = {}, {}, 0
    for name, network in networks.items():
        axes = join_axes(decay_maps(network, photographs, stage, -1, (size // 2, size // 2)))
        shares[name], side = axes.share, len(axes.log_ratio)
        for resolution, each in _by_resolution(decay_maps(network, photographs, stage, -1, None)):
            means[name, resolution] = float(np.mean([route.mean for route in each]))
    return Row(size, stage, side, shares, means)


def _by_resolution(maps: list[RouteDecay]) -> Iterator[tuple[str, list[RouteDecay]]]:
    return ((name, list(each)) for name, each in groupby(maps, key=lambda route: route.resolution))
