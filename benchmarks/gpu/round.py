"""A round: its device, its time, its results, and how a call is timed."""

import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import torch

from mmmsv.analysis.speed.markdown import table


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
        path.write_text(json.dumps(rows, indent=1))
        print(section, *(f"{name}: {value}" for name, value in row.items()), sep="  ", flush=True)
        self._write_tables()

    def synchronise(self) -> None:
        """Wait until the device has done what it was given."""
        if self.device.type == "cuda":
            torch.cuda.synchronize()

    def seconds(self, call: Callable[[], object], graph: bool = True) -> tuple[float, str]:
        """Return the median time of a call, and how it was taken: by replays of a CUDA graph, which have no gaps.

        Where the call cannot be captured, or without ``graph``, it is launched between two events.
        """
        call()
        self.synchronise()
        if self.device.type != "cuda":
            begin = time.perf_counter()
            call()
            return time.perf_counter() - begin, "wall clock"
        how = "events"
        if graph:
            try:
                call, how = self._captured(call), "graph"
            except RuntimeError as error:
                torch.cuda.synchronize()
                how = f"events, no graph: {str(error).splitlines()[0][:80]}"
        one = self._between_events(call, 2)
        count = max(1, min(50, int(0.03 / max(one, 1e-6))))
        return statistics.median(self._between_events(call, count) for _ in range(7)), how

    def host_seconds(self, call: Callable[[], object], count: int = 50) -> float:
        """Return the least time that Python takes to hand a call to the device."""
        call()
        times = []
        for _ in range(1 if self.dry else 5):
            begin = time.perf_counter()
            for _ in range(1 if self.dry else count):
                call()
            times.append((time.perf_counter() - begin) / (1 if self.dry else count))
            self.synchronise()
        return min(times)

    @staticmethod
    def _captured(call: Callable[[], object]) -> Callable[[], object]:
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            call()
        torch.cuda.current_stream().wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            call()
        return graph.replay

    @staticmethod
    def _between_events(call: Callable[[], object], count: int) -> float:
        begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        begin.record()
        for _ in range(count):
            call()
        end.record()
        end.synchronize()
        return begin.elapsed_time(end) / 1e3 / count

    def _write_tables(self) -> None:
        lines = ["# One round on a GPU", "", "Written by `python -m benchmarks.gpu`.", ""]
        for path in sorted(self.out.glob("*.json")):
            rows = json.loads(path.read_text())
            # A section may have rows of several kinds.
            for names in dict.fromkeys(tuple(row) for row in rows):
                values = ([row[name] for name in names] for row in rows if tuple(row) == names)
                lines += [f"## {path.stem}", "", table(names, values), ""]
        (self.out / "README.md").write_text("\n".join(lines))
