"""A round: its device, its time, and its results."""

import json
import time
from collections.abc import Callable
from pathlib import Path

import torch

from mmmsv.analysis.speed.markdown import table
from mmmsv.analysis.speed.timing import Candidate, take_turns
from mmmsv.whole_files import write_whole


class Round:
    """Hold what all sections of a round share.

    Args:
        out: Folder of the results; each row is written as soon as it is there.
        budget: Seconds that the round may take.
        dry: Whether to go through all of it on a CPU, in sizes that take next to no time.
    """

    def __init__(self, out: Path, budget: float, dry: bool) -> None:
        self.out, self.dry, self.budget = out, dry, budget
        self.device = torch.device("cpu" if dry else "cuda")
        self.copied = 0.0  # bytes a second that a copy reads and writes, once it was measured
        self._began = time.monotonic()
        out.mkdir(parents=True, exist_ok=True)

    @property
    def left(self) -> float:
        """Seconds that are left."""
        return self.budget - (time.monotonic() - self._began)

    def add(self, section: str, **row: object) -> None:
        """Print a row of results, and write it to ``<out>/<section>.json`` and the tables of ``<out>/README.md``."""
        path = self.out / f"{section}.json"
        rows = [*(json.loads(path.read_text()) if path.exists() else []), row]
        write_whole(path, json.dumps(rows, indent=1).encode())
        print(section, *(f"{name}: {value}" for name, value in row.items()), sep="  ", flush=True)
        self._write_tables()

    def seconds(self, call: Callable[[], object], short: bool = True) -> tuple[float, str]:
        """Return the median time of a call, and how it was taken: if it is ``short``, by replays of its kernels.

        Raises:
            RuntimeError: The call failed.
        """
        fewest, seconds = (1, 0.0) if self.dry else (7, 0.1)
        timings, reasons = take_turns({"call": Candidate(call)}, self.device, seconds, fewest, short or self.dry)
        if reasons:
            raise RuntimeError(reasons["call"])
        return timings["call"].median, timings["call"].how

    def _write_tables(self) -> None:
        lines = ["# One round on a GPU", "", "Written by `python -m benchmarks.gpu`.", ""]
        for path in sorted(self.out.glob("*.json")):
            rows = json.loads(path.read_text())
            # A section may have rows of several kinds.
            for names in dict.fromkeys(tuple(row) for row in rows):
                values = ([row[name] for name in names] for row in rows if tuple(row) == names)
                lines += [f"## {path.stem}", "", table(names, values), ""]
        write_whole(self.out / "README.md", "\n".join(lines).encode())
