"""The tables of the READMEs and of docs/zoo.md, written from the metafiles and from what is counted."""

import os
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

from mmmsv.analysis.speed.markdown import table

from .configs import load
from .metafiles import Figure, Model, Result

_UNITS = {"M": 1e6, "G": 1e9}
_FILE = "authors' file"
# Of a file's metrics, those that its list has.
_MAIN = ("Top 1 Accuracy", "box AP", "mask AP", "mIoU", "mIoU(ms+flip)")


class Comparison(NamedTuple):
    """A published number, such as 4.6G, beside the counted one."""

    published: str
    counted: int

    def rounded(self, more: int = 0) -> str:
        """Write what is counted with as many decimals as are published, or some more."""
        return f"{self.counted / _UNITS[self.published[-1]]:.{_decimals(self.published) + more}f}"

    @property
    def is_met(self) -> bool:
        """Whether what is counted is what is published, to the last digit."""
        return self.rounded() == self.published[:-1]

    @property
    def cells(self) -> tuple[str, str, str]:
        """What is counted, with two digits more than are published; what is published; and whether it is met."""
        return self.rounded(2), self.published[:-1], "met" if self.is_met else "**not met**"


def _decimals(published: str) -> int:
    return len(published[:-1].partition(".")[2])


def compare(model: Model, figure: Figure) -> tuple[Comparison | None, Comparison | None]:
    """Compare parameters and FLOPs that are published for a model with what is counted; None where none are."""
    cost = model.cost(figure.arch)
    parameters = cost.backbone if figure.backbone_alone else cost.parameters
    return (
        Comparison(figure.parameters, parameters) if figure.parameters else None,
        Comparison(figure.flops, cost.macs) if figure.flops else None,
    )


def comparisons(models: list[Model]) -> dict[tuple, list[str]]:
    """Compare all published parameters and FLOPs of models with what is counted.

    Returns:
        For each ``(figure without its source, sources, parameters, FLOPs)``, of which the last two are what ``compare``
        returns: the names of the models that it is of.
    """
    names: dict[tuple, list[str]] = {}
    for model in models:
        sources: dict[Figure, list[str]] = {}
        for figure in model.published:
            sources.setdefault(replace(figure, source=""), []).append(figure.source)
        for figure, documents in sources.items():
            names.setdefault((figure, tuple(documents), *compare(model, figure)), []).append(model.name)
    return names


def table_of_figures(models: list[Model]) -> str:
    """Write all published parameters and FLOPs beside the counted ones, with the number of matches at the head."""
    compared = comparisons(models)
    numbers = [comparison for _, _, *pair in compared for comparison in pair if comparison]
    body = []
    for (figure, sources, *pair), names in compared.items():
        which = ", ".join(f"`{name}`" for name in names)
        if figure.arch:
            which += f" with arch `{figure.arch}`"
        if figure.backbone_alone:
            which += ", backbone"
        cells = [cell for comparison in pair for cell in (comparison.cells if comparison else ("", "", ""))]
        body.append([which, "; ".join(sources), *cells])
    quantities = [head for q in ("parameters (M)", "GMACs") for head in (f"{q}, here", "published", "")]
    met = sum(comparison.is_met for comparison in numbers)
    return f"{met} of {len(numbers)} figures are met.\n\n" + table(["model", "source", *quantities], body)


def table_of_files(models: list[Model]) -> str:
    """Write all files of the authors with name, task, result and address; models of one file share a row."""
    with_file = [model for model in models if model.file or model.folder]
    body = []
    for address in dict.fromkeys(model.file or model.folder for model in with_file):
        first, *others = [model for model in with_file if (model.file or model.folder) == address]
        results = [result for model in (first, *others) for result in model.results if not result.note]
        metrics = {metric: value for result in results for metric, value in result.metrics.items()}
        body.append(
            [
                f"`authors://{first.name}`",
                ", ".join(dict.fromkeys(result.task for result in results)),
                ", ".join(f"{metric} {metrics[metric]}" for metric in _MAIN if metric in metrics),
                _link_to_file(first),
            ]
        )
    return table(["name", "task", "the authors' result", "file"], body)


def table_of_configs(name: str, models: list[Model], folder: Path) -> str:
    """Write the table of that name for a README in ``folder``; columns with nothing in them are left out."""
    groups: dict[str, list[Model]] = {}
    for model in models:
        if name in model.rows:
            groups.setdefault(model.rows[name], []).append(model)
    rows = [_row(label, group, folder) for label, group in groups.items()]
    headings = dict.fromkeys(heading for row in rows for heading in row)
    head = [heading for heading in headings if any(row.get(heading) for row in rows)]
    # Of results some rows have none, so it may have come before them.
    head.sort(key=lambda heading: heading == _FILE)
    return table(head, [[row.get(heading, "") for heading in head] for row in rows])


def _row(label: str, models: list[Model], folder: Path) -> dict[str, str]:
    """Write the cells of a row by their headings, for models that share all but their results."""
    first = models[0]
    links = [first.name, *(model.name.removeprefix(first.name) for model in models[1:])]
    paths = [os.path.relpath(model.config, folder) for model in models]
    cost = first.cost()
    return {
        "config": ", ".join(f"[{link}]({path})" for link, path in zip(links, paths, strict=True)),
        "model": label,
        "settings": _settings(load(first.config).model.backbone.arch),
        "parameters (M)": f"{cost.parameters / 1e6:.2f}",
        "parameters, published": _most_exact([(figure, figure.parameters) for figure in first.published]),
        "GMACs": _three_digits(cost.macs / 1e9),
        "GMACs, published": _most_exact([(figure, figure.flops) for figure in first.published]),
        **_metrics([result for model in models for result in model.results]),
        _FILE: _link_to_file(first),
    }


def _three_digits(value: float) -> str:
    return f"{value:.0f}" if value >= 100 else f"{value:#.3g}"


def _settings(arch: str | dict) -> str:
    if isinstance(arch, str):
        return ""
    return f"`{', '.join(f'{key}={value!r}' for key, value in arch.items() if key != 'base')}`"


def _most_exact(figures: list[tuple[Figure, str | None]]) -> str:
    """Choose among the published numbers that with the most digits, those of the whole model first."""
    own = [(figure, published) for figure, published in figures if published and figure.arch is None]
    if not own:
        return ""
    figure, published = max(own, key=lambda each: (not each[0].backbone_alone, _decimals(each[1])))
    return published[:-1] + (" (backbone)" if figure.backbone_alone else "")


def _metrics(results: list[Result]) -> dict[str, str]:
    """Write each metric once; what is of another model than the authors' file stands beside it, with its note."""
    cells: dict[str, list[str]] = {}
    for result in results:
        for metric, value in result.metrics.items():
            cells.setdefault(metric, []).append(f"{value} ({result.note})" if result.note else str(value))
    return {metric: ", ".join(values) for metric, values in cells.items()}


def _link_to_file(model: Model) -> str:
    if model.file:
        return f"[{model.file.rpartition('/')[2]}]({model.file})"
    return f"[folder]({model.folder})" if model.folder else ""
