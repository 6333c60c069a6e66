"""How far a run is, on stderr."""

import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from .measure import Row
from .models import short_name
from .workload import Case


class Bar:
    """Shows how far it is, on a terminal."""

    def __init__(self, bar: Progress, groups: int) -> None:
        self._bar, self._task = bar, bar.add_task("", total=groups)

    def tell(self, text: str) -> None:
        """Say what is being done."""
        self._bar.update(self._task, description=text, refresh=True)

    def advance(self, case: Case, rows: Sequence[Row]) -> None:
        """Say what came out of a group."""
        self._bar.console.print(summary(case, rows), markup=False, highlight=False, soft_wrap=True)
        self._bar.advance(self._task)


class Lines:
    """Prints a line for each group, where stderr is no terminal."""

    def tell(self, text: str) -> None:
        """Say nothing."""

    def advance(self, case: Case, rows: Sequence[Row]) -> None:
        """Say what came out of a group."""
        print(summary(case, rows), file=sys.stderr, flush=True)


def summary(case: Case, rows: Sequence[Row]) -> str:
    """Say in a line how long the models of a group took."""
    took = (f"{1e3 * row.turns.median:.3g} ms" if row.turns else f"failed, {row.reason}" for row in rows)
    return f"{case}: " + ", ".join(f"{short_name(row.model)} {text}" for row, text in zip(rows, took, strict=True))


@contextmanager
def progress(groups: int) -> Iterator[Bar | Lines]:
    """Show how far it is, on stderr."""
    if not sys.stderr.isatty():
        yield Lines()
        return
    columns = (BarColumn(20), MofNCompleteColumn(), TimeElapsedColumn(), TextColumn("{task.description}", markup=False))
    # By itself it would draw ten times a second, from a thread that the calls that are timed have to share with.
    with Progress(*columns, console=Console(stderr=True), auto_refresh=False) as bar:
        yield Bar(bar, groups)
