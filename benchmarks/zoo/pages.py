"""The files that the command writes: metafiles, and pages with tables between two comments."""

import re
from collections.abc import Iterator
from pathlib import Path

from .configs import ROOT
from .metafiles import Model, metafiles, read, with_counts
from .tables import table_of_configs, table_of_figures, table_of_files

# Tables that are of all models; others are named by the models that stand in them.
_OF_ALL = {"figures": table_of_figures, "files": table_of_files}
_TABLE = re.compile(
    r"^(<!-- begin (?P<name>[\w-]+), written by make zoo -->\n).*?(^<!-- end (?P=name) -->$)", re.MULTILINE | re.DOTALL
)


def texts() -> dict[Path, str]:
    """Return what each metafile and each page with tables should hold.

    Raises:
        ValueError: A page has comments for a table that no model stands in, or a model stands in a table that no page
            has.
    """
    models = [model for metafile in metafiles() for model in read(metafile)]
    named = {name: model for model in models for name in model.rows}
    written = {metafile: with_counts(metafile) for metafile in metafiles()}
    found = set()
    for page in [*sorted((ROOT / "configs").glob("**/README.md")), ROOT / "docs/zoo.md"]:
        written[page], names = _with_tables(page, models, named.keys())
        found |= names
    for name, model in named.items():
        if name not in found:
            raise ValueError(
                f"{model.metafile.relative_to(ROOT)}: model {model.name} stands in the table {name}, which no page "
                f"has; put '<!-- begin {name}, written by make zoo -->' and '<!-- end {name} -->' into a README"
            )
    return written


def _with_tables(page: Path, models: list[Model], named: set[str]) -> tuple[str, set[str]]:
    """Return the text of a page with its tables as they should be, and their names."""
    names = set()

    def write(match: re.Match[str]) -> str:
        name = match["name"]
        if name not in {*named, *_OF_ALL}:
            raise ValueError(
                f"{page.relative_to(ROOT)} has comments for the table {name}, in which no model of the metafiles "
                f"stands; give models Rows with {name}, or remove the comments"
            )
        names.add(name)
        text = _OF_ALL[name](models) if name in _OF_ALL else table_of_configs(name, models, page.parent)
        return f"{match[1]}\n{text}\n\n{match[3]}"

    return _TABLE.sub(write, page.read_text()), names


def differences() -> Iterator[str]:
    """Say of each file that is not what it should be where it first differs."""
    for path, text in texts().items():
        if path.read_text() == text:
            continue
        lines = [*path.read_text().splitlines(), "the end"], [*text.splitlines(), "the end"]
        at, (have, want) = next((i, pair) for i, pair in enumerate(zip(*lines, strict=False), 1) if pair[0] != pair[1])
        yield f"{path.relative_to(ROOT)}, line {at}, is {have!r}, expected {want!r}: run `make zoo`"
