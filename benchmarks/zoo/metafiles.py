"""The metafiles: what they say of each model, and the two numbers in them that are counted here."""

import re
from copy import deepcopy
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import yaml

from .configs import ROOT, load
from .costs import Cost, cost


@dataclass(frozen=True)
class Figure:
    """Parameters and FLOPs that one source publishes, with the digits that it prints, such as 33M and 4.6G.

    Args:
        source: Where they are published.
        parameters: Of the model, or None where the source has none.
        flops: Of the model, or None.
        backbone_alone: Whether the parameters are those without the head.
        arch: The arch that they are of, where it is not the config's.
    """

    source: str
    parameters: str | None
    flops: str | None
    backbone_alone: bool
    arch: str | None


@dataclass(frozen=True)
class Result:
    """Metrics that one source reports for a model on one data set.

    Args:
        task: Such as Object Detection.
        metrics: By their names.
        note: Of which other model they are, where they are not those of the authors' file.
    """

    task: str
    metrics: dict[str, float]
    note: str | None


@dataclass(frozen=True)
class Model:
    """A model of a metafile.

    Args:
        metafile: Where it is from.
        name: Its name.
        config: Its config.
        rows: Its name in each table that has it; models of one name share a row.
        published: Parameters and FLOPs.
        results: Where sources differ, that of the authors' file is the last, which mim shows.
        file: Address of the authors' file, where there is a direct link.
        folder: Where to fetch it by hand, where there is none.
    """

    metafile: Path
    name: str
    config: Path
    rows: dict[str, str]
    published: list[Figure]
    results: list[Result]
    file: str | None
    folder: str | None

    def cost(self, arch: str | None = None) -> Cost:
        """Count what the model costs, with its own arch or another."""
        cfg = load(self.config)
        if arch is not None:
            cfg = deepcopy(cfg)
            cfg.model.backbone.arch = arch
        return cost(cfg)


def metafiles() -> list[Path]:
    """Return the metafiles that mim reads."""
    return [ROOT / path for path in yaml.safe_load((ROOT / "model-index.yml").read_text())["Import"]]


@cache
def read(metafile: Path) -> list[Model]:
    """Read the models of a metafile.

    Raises:
        ValueError: A config is not there, a model is in no table, or a published figure is none.
    """
    return [_read_model(metafile, entry) for entry in yaml.safe_load(metafile.read_text())["Models"]]


def _read_model(metafile: Path, entry: dict[str, Any]) -> Model:
    config = ROOT / entry["Config"]
    where = f"{metafile.relative_to(ROOT)}: model {entry['Name']}"
    if not config.exists():
        raise ValueError(f"{where} has the config {entry['Config']}, which is not there; write it, or correct its path")
    if not entry.get("Rows"):
        raise ValueError(f"{where} is in no table; give it Rows, such as {{300e: MSVMamba-Nano}}: table and name there")
    origin = entry.get("Converted From", {})
    return Model(
        metafile,
        entry["Name"],
        config,
        entry["Rows"],
        [_read_figure(where, figure) for figure in entry.get("Published", [])],
        [Result(result["Task"], result["Metrics"], result.get("Note")) for result in entry.get("Results", [])],
        origin.get("Weights"),
        origin.get("Folder"),
    )


def _read_figure(where: str, entry: dict[str, str]) -> Figure:
    number = r"\d+(\.\d+)?"
    known = {"Source": ".+", "Parameters": f"{number}M", "FLOPs": f"{number}G", "Part": "backbone", "Arch": ".+"}
    if "Source" not in entry or not all(re.fullmatch(known.get(key, ""), str(entry[key])) for key in entry):
        raise ValueError(
            f"{where} has published figures {entry}, expected Source, Parameters such as 33M, FLOPs such as 4.6G and, "
            "where they are not those of the whole model, Part: backbone or Arch"
        )
    return Figure(entry["Source"], entry.get("Parameters"), entry.get("FLOPs"), "Part" in entry, entry.get("Arch"))


def with_counts(metafile: Path) -> str:
    """Return the text of a metafile with the parameters and FLOPs that are counted now.

    Raises:
        ValueError: A model has no line for one of them.
    """
    head, heading, entries = metafile.read_text().partition("\nModels:\n")
    before, *blocks = re.split(r"^(?=  - Name: )", entries, flags=re.MULTILINE)
    for i, (model, block) in enumerate(zip(read(metafile), blocks, strict=True)):
        counted = model.cost()
        for key, number in (("Parameters", counted.parameters), ("FLOPs", counted.macs)):
            block, found = re.subn(rf"^(      {key}: )\d+$", rf"\g<1>{number}", block, flags=re.MULTILINE)
            if found != 1:
                raise ValueError(
                    f"{metafile.relative_to(ROOT)}: model {model.name} has {found} lines '{key}: NUMBER' in its "
                    f"Metadata, expected one; write '{key}: 0', which this command replaces"
                )
        blocks[i] = block
    return "".join((head, heading, before, *blocks))
