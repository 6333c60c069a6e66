"""Make all figures of some networks and one photograph, as the sections of one page.

A section is made as its own tool makes it by default, but of the whole photograph, where tools that average over
several cut squares. What cannot be made for one of the networks is said in the section, in the sentence of the error.
"""

import shlex
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, fields
from functools import cached_property
from pathlib import Path
from typing import TypeVar

from matplotlib.figure import Figure
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from mmmsv.models.arch import Arch, BlockArch

from .attention import attention_maps
from .cam import class_activation
from .decay import decay_maps, join_axes
from .features import feature_maps
from .figures import attention_map, cam, decay_map, feature_map, photograph, scaling, scan_routes
from .figures import receptive_field as receptive_field_figure
from .figures.html import DENSITY, Picture, Section, Table, render
from .figures.saving import as_bytes
from .flops import BACKBONES, count, parameters
from .networks import Network
from .photographs import Photograph, read_photograph
from .receptive_field import receptive_field
from .scaling import measure
from .speed.models import full_name

Given = TypeVar("Given")
Made = TypeVar("Made")
# Stage and block, as the tools show them by default.
_DECAY, _ATTENTION = (-1, -1), (1, -1)
_GRID = (8, 6)


@dataclass(frozen=True)
class Subject:
    """What a report is of.

    Args:
        networks: The networks, whose titles differ.
        models: What each of them was loaded from, as :func:`~mmmsv.analysis.networks.load_network` takes it.
        checkpoints: Their checkpoints, ``'none'`` for random weights; empty where all weights are random.
        path: Of the photograph.
        size: Its long side, in pixels, a multiple of 32.
        pixel: x and y of the query pixel in the file; None is the centre.
    """

    networks: Sequence[Network]
    models: Sequence[str]
    checkpoints: Sequence[str]
    path: Path
    size: int
    pixel: tuple[int, int] | None = None

    @cached_property
    def photograph(self) -> Photograph:
        """The photograph.

        Raises:
            ValueError: It cannot be read, or the size is not allowed.
        """
        return read_photograph(self.path, self.size, "whole")

    @property
    def query(self) -> tuple[int, int]:
        """Row and column of the query pixel in :attr:`photograph`.

        Raises:
            ValueError: It is outside.
        """
        return self.photograph.locate(self.pixel)

    def of_each(self, compute: Callable[[Network], Made]) -> tuple[dict[str, Made], list[str]]:
        """Compute something of each network; return it by their titles, and the errors of those that have none."""
        return _of_each({network.title: network for network in self.networks}, compute)

    def by_block(self, made: Mapping[str, Made], stage: int, block: int) -> dict[str, Made]:
        """Return what was made of networks, by their titles, under titles that name a block of each as well."""
        networks = (network for network in self.networks if network.title in made)
        return {network.describe_block(stage, block): made[network.title] for network in networks}

    def commands(self, tool: str, made: Collection[str], *options: object) -> list[str]:
        """Write the command of a tool with the photograph and those of the networks whose titles are in ``made``."""
        if not made:
            return []
        which = [i for i, network in enumerate(self.networks) if network.title in made]
        words: list[object] = [self.path, "--model", *(self.models[i] for i in which)]
        if self.checkpoints:
            words += ["--checkpoint", *(self.checkpoints[i] for i in which)]
        return [_command(tool, *words, "--size", self.size, *options)]

    @property
    def query_option(self) -> list[object]:
        """How a command is given the query pixel; nothing where it is the centre."""
        return ["--query", *self.pixel] if self.pixel else []


def make_report(subject: Subject) -> str:
    """Make all sections, with progress on stderr; return the page, in HTML.

    Raises:
        ValueError: The photograph cannot be read, its size is not allowed, or the query pixel is outside.
    """
    height, width = subject.photograph.shape
    row, column = subject.query
    columns = (BarColumn(20), MofNCompleteColumn(), TimeElapsedColumn(), TextColumn("{task.description}"))
    console = Console(stderr=True)
    sections = {}
    with Progress(*columns, console=console, disable=not console.is_terminal) as bar:
        task = bar.add_task("", total=len(_SECTIONS))
        for title, make in _SECTIONS.items():
            bar.update(task, description=title)
            start = time.perf_counter()
            sections[title] = make(subject)
            bar.console.print(f"{title}: {time.perf_counter() - start:.1f} s", highlight=False)
            bar.advance(task)
    networks = "; ".join(network.title for network in subject.networks)
    text = (
        f"What the networks make of {subject.path.name}, brought to {width} x {height} pixels. The query pixel is in "
        f"row {row} and column {column} of these. Stages and blocks are counted from 0, and -1 is the last."
    )
    return render(f"{networks}: {subject.photograph.name}", text, sections)


def _make_network(subject: Subject) -> Section:
    height, width = subject.photograph.shape
    macs, uncounted = subject.of_each(lambda network: count(network.model, (height, width)).total)
    archs, without = subject.of_each(lambda network: network.backbone.arch)
    columns = []
    for network in subject.networks:
        column = {"parameters": f"{parameters(network.model) / 1e6:.2f} M"}
        if network.title in macs:
            column["multiply-adds"] = f"{macs[network.title] / 1e9:.2f} G"
        columns.append(column | (_settings(archs[network.title]) if network.title in archs else {}))
    names = dict.fromkeys(name for column in columns for name in column)
    return Section(
        f"Parameters, multiply-adds for an image of {width} x {height} pixels in the convention of the papers, and the "
        "settings of the arch by their names there. Where stages differ in a setting, it is listed for each.",
        Table(
            ["", *(network.title for network in subject.networks)],
            [[name, *(column.get(name, "") for column in columns)] for name in names],
        ),
        notes=[*uncounted, *without],
        commands=[command for model in subject.models for command in _flops_commands(model, height, width)],
    )


def _make_photograph(subject: Subject) -> Section:
    height, width = subject.photograph.shape
    return Section(
        f"The photograph as the networks get it, {width} x {height} pixels, sides being multiples of 32; the file has "
        f"{subject.photograph.size[0]} x {subject.photograph.size[1]}. The mark is on the query pixel.",
        pictures=[_picture(photograph.draw(subject.photograph, subject.query), "The photograph with the query pixel")],
    )


def _make_scan_routes(subject: Subject) -> Section:
    scans, notes = subject.of_each(lambda network: network.scan(0, 0))
    rows, columns = _GRID
    pictures, commands = [], []
    if scans:
        text = f"Grids of {rows} x {columns} tokens with a line through them in the order of each route"
        pictures.append(_picture(scan_routes.draw(scans, rows, columns), text))
        models = [model for net, model in zip(subject.networks, subject.models, strict=True) if net.title in scans]
        commands.append(_command("scan_routes", "--model", *models, "--grid", rows, columns))
    return Section(
        f"The order in which the scans of the first stage visit {rows} x {columns} tokens; colours are places in a "
        "sequence. Routes on one ground are one sequence, through which the state runs on, and a token of lower "
        "resolution covers those that it stands for.",
        pictures=pictures,
        notes=notes,
        commands=commands,
    )


def _make_decay(subject: Subject) -> Section:
    stage, block = _DECAY
    (height, width), query = subject.photograph.shape, subject.query

    def compute(network: Network, towards: tuple[int, int] | None) -> list:
        return decay_maps(network, [subject.photograph], stage, block, towards)

    axes, notes = subject.of_each(lambda network: join_axes(compute(network, query)))
    routes, _ = subject.of_each(lambda network: compute(network, None))
    what = f"{subject.photograph.name}, {width} x {height}"
    pictures = []
    if axes:
        shares = "; ".join(f"{title}: {decay.share_in_words}" for title, decay in axes.items())
        position = ((query[0] + 0.5) / height, (query[1] + 0.5) / width)
        means = "; ".join(
            f"{title}: {', '.join(f'{each.route} {each.mean:.3f}' for each in maps)}" for title, maps in routes.items()
        )
        pictures = [
            _picture(
                decay_map.draw_axes(subject.by_block(axes, stage, block), position, what),
                f"Maps of decay; share of large ratios: {shares}",
            ),
            _picture(
                decay_map.draw_routes(subject.by_block(routes, stage, block), what),
                f"Maps of decay along each route; means: {means}",
            ),
        ]
    return Section(
        "How much of each token is left in the state when a scan of the last block comes to the query token, along "
        "rows and along columns, and to the last token of each route. It is exp(sum of delta A) along the route, "
        "averaged over channels and states. The command takes the square in the middle of the photograph.",
        pictures=pictures,
        notes=notes,
        commands=subject.commands("decay_map", axes, "--stage", stage, "--block", block, *subject.query_option),
    )


def _make_attention(subject: Subject) -> Section:
    stage, block = _ATTENTION
    maps, notes = subject.of_each(lambda net: attention_maps(net, subject.photograph, stage, block, subject.query))
    pictures = []
    if maps:
        figure = attention_map.draw(subject.by_block(maps, stage, block), subject.photograph, subject.query)
        pictures.append(_picture(figure, "Maps of weights over the photograph, for each route and summed"))
    return Section(
        "The scan of a block written as attention: the weight that each token has in the output of the query token, "
        "along each route and summed. It is the mean over the channels of |C exp(sum of delta A) delta B|, summed over "
        "states before the absolute value is taken.",
        pictures=pictures,
        notes=notes,
        commands=subject.commands("attention_map", maps, "--stage", stage, "--block", block, *subject.query_option),
    )


def _make_receptive_field(subject: Subject) -> Section:
    height, width = subject.photograph.shape
    receptive_fields, notes = subject.of_each(lambda network: receptive_field(network, [subject.photograph]))
    pictures = []
    if receptive_fields:
        sides = "; ".join(
            f"{title}: {', '.join(f'{side} pixels hold {100 * share:.0f} %' for share, side in field.sides.items())}"
            for title, field in receptive_fields.items()
        )
        figure = receptive_field_figure.draw(receptive_fields, f"{subject.photograph.name}, {width} x {height}")
        pictures.append(_picture(figure, f"Maps of gradients with squares; sides: {sides}"))
    return Section(
        "How much the central token of the last map depends on each pixel, relative to the pixel that it depends on "
        "most. It is the absolute gradient of the sum of the token's positive channels, summed over colours; the "
        "squares hold 20, 50, 90 and 99 % of it. The command takes the square in the middle of the photograph, and "
        "shows a network with a checkpoint before training, too.",
        pictures=pictures,
        notes=notes,
        commands=subject.commands("receptive_field", receptive_fields),
    )


def _make_features(subject: Subject) -> Section:
    features, notes = subject.of_each(lambda network: feature_maps(network, subject.photograph, subject.query))
    return Section(
        "What leaves each stage: the three principal components of its tokens as red, green and blue, their norms, and "
        "the cosine of the angle between each and the query token. Components are scaled one by one, from the quantile "
        "0.01 to 0.99.",
        pictures=[
            _picture(
                feature_map.draw(stages, subject.photograph, subject.query, title),
                f"Maps of components, norms and similarities for each stage of {title}",
            )
            for title, stages in features.items()
        ],
        notes=notes,
        commands=subject.commands("feature_map", features, *subject.query_option),
    )


def _make_cam(subject: Subject) -> Section:
    activations, notes = subject.of_each(lambda network: class_activation(network, subject.photograph))
    pictures = []
    if activations:
        outputs = "; ".join(f"{title}: {activation}" for title, activation in activations.items())
        text = f"Maps of class activation over the photograph; {outputs}"
        pictures.append(_picture(cam.draw(activations, subject.photograph), text))
    return Section(
        "Where a classifier sees the class that it predicts, or a detector its best box. By Grad-CAM: the channels of "
        "the last map, each times the mean gradient of that output, are summed, and what is positive is shown.",
        pictures=pictures,
        notes=notes,
        commands=subject.commands("cam", activations),
    )


def _make_scaling(subject: Subject) -> Section:
    points, notes = _of_each({model: model for model in subject.models}, lambda model: measure([model]))
    pictures = []
    if points:
        all_points = [point for of_model in points.values() for point in of_model]
        figure = scaling.draw(all_points, "multiply-adds in the published convention")
        pictures.append(_picture(figure, "Curves of multiply-adds, and of multiply-adds per pixel, over the size"))
    return Section(
        "Multiply-adds for one square image over its side, in the convention of the papers, and the same for each "
        "pixel. The latter are constant where the cost grows in proportion to the number of pixels.",
        pictures=pictures,
        notes=notes,
        commands=[_command("scaling", "--model", *points, "--no-speed")] if points else [],
    )


_SECTIONS: Mapping[str, Callable[[Subject], Section]] = {
    "Network": _make_network,
    "Photograph": _make_photograph,
    "Scan routes": _make_scan_routes,
    "Decay": _make_decay,
    "Attention": _make_attention,
    "Receptive field": _make_receptive_field,
    "Features": _make_features,
    "Class activation": _make_cam,
    "Scaling": _make_scaling,
}


def _of_each(given: Mapping[str, Given], compute: Callable[[Given], Made]) -> tuple[dict[str, Made], list[str]]:
    made, errors = {}, []
    for title, each in given.items():
        try:
            made[title] = compute(each)
        except ValueError as error:
            errors.append(str(error))
    return made, errors


def _picture(figure: Figure, text: str) -> Picture:
    return Picture(as_bytes(figure, "png", DENSITY), f"{text}.")


def _settings(arch: Arch) -> dict[str, str]:
    """Write the settings of an arch, one value where all stages have the same."""
    settings = {"embed_dims": _list(arch.embed_dims), "depths": _list(arch.depths)}
    settings |= {"stem": arch.stem, "downsample": arch.downsample}
    for name in (field.name for field in fields(BlockArch)):
        values = [_list(value) if isinstance(value := getattr(b, name), tuple) else str(value) for b in arch.blocks]
        settings[name] = values[0] if len({*values}) == 1 else "; ".join(values)
    return settings


def _list(values: Sequence[object]) -> str:
    return ", ".join(map(str, values)) or "none"


def _flops_commands(model: str, height: int, width: int) -> list[str]:
    """Write the command that counts a config or an arch; there is none for torchvision's classifiers."""
    if Path(model).suffix == ".py":
        words = [model]
    else:
        family, _, arch = full_name(model).partition(":")
        words = ["--model", family, "--arch", arch] if family in BACKBONES else []
    return [_command("get_flops", *words, "--shape", height, width)] if words else []


def _command(tool: str, *words: object) -> str:
    return shlex.join(["python", "-m", "mim", "run", "mmmsv", tool, *map(str, words)])
