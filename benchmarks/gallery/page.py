"""Read the commands and the pictures of docs/gallery.md, and write its tables."""

import re
from collections.abc import Mapping
from pathlib import Path

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs/gallery.md"
PICTURES = ROOT / "docs/images/gallery"
_BLOCK = re.compile(r"^<!-- not run: [^\n]*make gallery runs it -->\n```bash\n(.*?)^```$", re.MULTILINE | re.DOTALL)
_PICTURE = re.compile(r"\[[^]]+\]\(images/gallery/([\w./-]+)\)")
_TABLE = re.compile(
    r"^(<!-- begin (?P<name>[\w-]+), written by make gallery -->\n).*?(^<!-- end (?P=name) -->$)",
    re.MULTILINE | re.DOTALL,
)


def commands() -> list[str]:
    """Return the commands of the page, in their order."""
    return [code.strip() for code in _BLOCK.findall(PAGE.read_text())]


def pictures() -> list[str]:
    """Return the paths of the pictures that the page shows, in docs/images/gallery."""
    return list(dict.fromkeys(_PICTURE.findall(PAGE.read_text())))


def with_tables(tables: Mapping[str, str]) -> str:
    """Return the text of the page with these tables between the comments that name them.

    Raises:
        ValueError: The page has comments for a table that is not there.
    """

    def write(match: re.Match[str]) -> str:
        if match["name"] not in tables:
            raise ValueError(
                f"{PAGE.relative_to(ROOT)} has comments for the table {match['name']}, expected one of "
                f"{', '.join(sorted(tables))}; correct the name, or remove the comments"
            )
        return f"{match[1]}\n{tables[match['name']]}\n\n{match[3]}"

    return _TABLE.sub(write, PAGE.read_text())
