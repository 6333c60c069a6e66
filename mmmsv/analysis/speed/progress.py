"""Show on stderr how far a run is."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from .groups import Row
from .models import short_name
from .workload import Step


class Bar:
    """Shows how far it is on a terminal; elsewhere, prints a line for each group."""

    def __init__(self, bar: Progress, groups: int) -> None:
        self._bar, self._task = bar, bar.add_task("", total=groups)

    def show(self, text: str) -> None:
        """Show what is being done."""
        self._bar.update(self._task, description=text, refresh=True)

    def advance(self, step: Step, rows: Sequence[Row]) -> None:
        """Print how long the models of a group took."""
        took = (f"{1e3 * row.timing.median:.3g} ms" if row.timing else f"failed, {row.reason}" for row in rows)
        line = ", ".join(f"{short_name(row.model)} {text}" for row, text in zip(rows, took, strict=True))
        self._bar.console.print(f"{step}: {line}", markup=False, highlight=False, soft_wrap=True)
        self._bar.advance(self._task)


@contextmanager
def progress(groups: int) -> Iterator[Bar]:
    """Show how far it is, on stderr."""
    columns = (BarColumn(20), MofNCompleteColumn(), TimeElapsedColumn(), TextColumn("{task.description}", markup=False))
    console = Console(stderr=True)
    # By itself it would draw ten times a second, from a thread that the calls that are timed have to share with.
    with Progress(*columns, console=console, auto_refresh=False, disable=not console.is_terminal) as bar:
        yield Bar(bar, groups)
