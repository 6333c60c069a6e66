"""Scripts of tools/ as modules."""

import importlib.util
import re
from pathlib import Path
from types import ModuleType

ROOT = Path(__file__).parents[2]


def load_tool(name: str) -> ModuleType:
    """Import ``tools/{name}.py``, which is no part of a package."""
    spec = importlib.util.spec_from_file_location(name, ROOT / f"tools/{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def tables_of(text: str) -> list[list[list[str]]]:
    """The Markdown tables of a text, each a list of rows, the header first."""
    blocks = re.findall(r"(?:^\|.*\|\n?)+", text, re.MULTILINE)
    tables = [[[cell.strip() for cell in line.strip("|").split("|")] for line in b.splitlines()] for b in blocks]
    assert all(len(row) == len(table[0]) for table in tables for row in table)
    return [[header, *rows] for header, _, *rows in tables]
