"""Measure the selective scan and write the tables to benchmarks/results/<machine>.md; benchmarks/README.md says more.

    python -m benchmarks.scan --quick --output quick.md    # tiny sizes: does it all work?

Nothing here passes or fails on a time: the tables are for reading. What each shows is said above it.
"""

import argparse
import contextlib
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from mmmsv.analysis.speed import machine
from mmmsv.analysis.speed.clock import stream_of_its_own
from mmmsv.analysis.speed.markdown import number, spread, table
from mmmsv.analysis.speed.memory import child_process, measure_in
from mmmsv.analysis.speed.timing import FAILURES, Candidate, explain
from mmmsv.whole_files import write_whole

from .baselines import Implementation, list_implementations
from .cases import Case, MapCase, SequenceCase
from .comparison import (
    BACKWARD,
    BOTH,
    FORWARD,
    Call,
    compare,
    duration,
    extra_memory,
    left_out,
    tables_of,
    time_all,
    total,
)

RESULTS = Path(__file__).parent / "results"
LEGEND = (
    "Written by `make bench`. Times are medians, with the 10th and the 90th percentile in brackets; a time without "
    "them is that of a single call, of more than a second. The figures in one row were measured in turns, round after "
    "round, after a warm-up, so the ratios hold whatever else the machine did. Each call of a backend goes through the "
    "public function, with its checks. On a GPU the kernels of a call are recorded in a CUDA graph, and what is timed "
    "are replays, without gaps; a call that cannot be recorded is timed with its launches, and marked *launched*. A "
    "*pair* is one channel of one token on one route. *Forward* runs without autograd, *backward* on a kept graph, "
    "*forward+backward* makes the graph too."
)
# Of MSVMamba-Tiny at 224: side of the full map, channels and rank of the step of each stage, and its blocks.
STAGES, BLOCKS = ((56, 192, 6), (28, 384, 12), (14, 768, 24), (7, 1536, 48)), (1, 2, 9, 2)
HALF = {"routes": ("row_rev", "col", "col_rev"), "carry": True, "merge": False}
FOUR = ("row", "col", "row_rev", "col_rev")


@dataclass(frozen=True)
class Bench:
    """What all tables share.

    Args:
        device: That everything runs on.
        implementations: Those that can run there, the one that the others are compared with first.
        quick: Whether tiny cases are measured in the place of those of a table.
    """

    device: torch.device
    implementations: Sequence[Implementation]
    quick: bool

    @property
    def gpu(self) -> bool:
        """Whether cases should be large, and of bfloat16."""
        return self.device.type == "cuda"

    @property
    def seconds(self) -> float:
        """How long the rounds of a case may take."""
        return 0.03 if self.quick else 2.0

    @property
    def names(self) -> list[str]:
        return [one.name for one in self.implementations]

    @property
    def stages(self) -> list[MapCase]:
        """The scans of the full maps of MSVMamba-Tiny: one image on a CPU, on a GPU as many as fill it."""
        batch, dtype = (128, torch.bfloat16) if self.gpu else (1, torch.float32)
        return [MapCase(batch, side, side, channels, rank, dtype=dtype) for side, channels, rank in STAGES]

    def chosen(self, cases: Iterable[Case]) -> Iterator[Case]:
        """Yield the cases to measure, and print each."""
        for case in cases:
            case = case.tiny() if self.quick else case
            log(f"  {case}")
            yield case

    def compare(self, cases: Iterable[Case], times: Sequence[int] = (), label: str = "") -> str:
        """Compare all implementations; add a row for the sum of the cases, each as often as ``times`` says."""
        rows = [compare(case, self.implementations, self.device, self.seconds) for case in self.chosen(cases)]
        if times:
            rows.append(total(label, rows, times))
        return tables_of(self.names[0], self.names[1:], rows)

    def candidates(self, cases: Iterable[Case], modes: Sequence[str]) -> dict[tuple[Case, str], Candidate]:
        """Make candidates of the first implementation, by case and mode; to be timed in turns."""
        first, candidates = self.implementations[0], {}
        for case in cases:
            call = Call(case, self.device)
            call.results(first)  # what has to be compiled for it is, before any time is taken
            candidates |= {(case, mode): call.candidate(first, mode) for mode in modes}
        return candidates


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.scan", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--output", type=Path, help="file to write, instead of that of this machine")
    parser.add_argument("--quick", action="store_true", help="tiny sizes, which show that all works and nothing else")
    parser.add_argument("--device", choices=("cpu", "cuda"), help="default: cuda where there is one")
    args = parser.parse_args()
    if args.device == "cuda" and not torch.cuda.is_available():
        parser.error("--device cuda: torch sees no CUDA device here")
    if args.output and args.output.is_dir():
        parser.error(f"--output {args.output}: is a folder, expected a file")
    device = torch.device(args.device or ("cuda" if torch.cuda.is_available() else "cpu"))
    output = args.output or RESULTS / f"{machine.name(device)}.md"

    started, sections = time.monotonic(), []
    with stream_of_its_own(device):
        for section in measure_all(device, args.quick):
            sections.append(section)
            write_whole(output, ("\n\n".join(sections) + "\n").encode())  # each time, for a run may be killed
    log(f"{output}, after {time.monotonic() - started:.0f} s")


def measure_all(device: torch.device, quick: bool) -> Iterator[str]:
    """Measure everything, and yield it section by section, as Markdown.

    Raises:
        SystemExit: At the end, if a section failed; its text says why.
    """
    facts = machine.facts(device)
    everything = list_implementations(device)
    bench = Bench(device, [one for one in everything if not one.why_not], quick)
    compared = ((one.name, one.what, f"no: {one.why_not}" if one.why_not else "yes") for one in everything)
    yield f"# The selective scan on {machine.name(device)}{' (--quick: tiny sizes, no measurement)' if quick else ''}"
    yield table(("", ""), facts.items())
    yield LEGEND
    yield f"## What is compared\n\n{table(('name', 'what', 'runs here'), compared)}"
    failed = []
    for title, make in TABLES.items():
        if device.type == "cpu" or make is not thread_table:
            log(title)
            try:
                text = make(bench)
            except FAILURES as error:
                failed.append(title)
                text = f"Failed: {explain(error)}."
            yield f"## {title}\n\n{text}"
    if failed:
        sys.exit(f"failed: {', '.join(failed)}; the tables say why")


def half_map(whole: MapCase) -> MapCase:
    """Return the scan that MS2D makes beside ``whole``: the other three routes, over the map of half the sides."""
    return replace(whole, height=(whole.height + 1) // 2, width=(whole.width + 1) // 2, **HALF)


def detection(bench: Bench) -> MapCase:
    """Return the first stage's scan for an image of 1280 x 800."""
    return replace(bench.stages[0], batch=2 if bench.gpu else 1, height=200, width=320)


def stage_table(bench: Bench) -> str:
    cases = [case for whole in bench.stages for case in (whole, half_map(whole))]
    times = [blocks for blocks in BLOCKS for _ in range(2)]
    return (
        "The scans of MSVMamba-Tiny for images of 224 x 224, stage by stage: one route over the full map, three over "
        "that of half the sides, carried from one to the next.\n\n"
    ) + bench.compare(cases, times, f"all of the network: {sum(BLOCKS)} blocks")


def detection_table(bench: Bench) -> str:
    whole = detection(bench)
    return "The scans of stage 1 for an image of 1280 x 800.\n\n" + bench.compare((whole, half_map(whole)))


def length_table(bench: Bench) -> str:
    sides, modes = (14, 28, 56, 112, 224, 512), (FORWARD, BACKWARD)
    first = replace(bench.stages[0], batch=16 if bench.gpu else 1)
    cases = list(bench.chosen(replace(first, height=side, width=side) for side in sides))
    timings = time_all(bench.candidates(cases, modes), bench.device, bench.seconds)
    costs = {key: [1e9 * seconds / key[0].pairs for seconds in its.samples] for key, its in timings.items()}
    body = [(str(case), case.height * case.width, *(spread(costs[case, mode]) for mode in modes)) for case in cases]
    growth = []
    for mode in modes:
        medians = [timings[case, mode].median / case.pairs for case in cases]
        growth.append(f"{100 * (max(medians) / min(medians) - 1):.0f} %")
    return (
        f"Does the cost of a pair grow with the length? `{bench.names[0]}`, ns per pair, all maps in turns.\n\n"
    ) + table(("scan", "tokens", *modes), [*body, ("largest / smallest - 1", "", *growth)])


def vmamba_table(bench: Bench) -> str:
    first, _, third, _ = bench.stages
    cases = [replace(case, batch=8 if bench.gpu else 1, state=16, routes=FOUR) for case in (first, third)]
    return "Four routes with a parameter set each, summed, and 16 states.\n\n" + bench.compare(cases)


def dtype_table(bench: Bench) -> str:
    dtypes, modes = (torch.float32, torch.bfloat16, torch.float16), (FORWARD, BOTH)
    body = []
    for case in bench.chosen(bench.stages):
        variants = [replace(case, dtype=dtype) for dtype in dtypes]
        timings = time_all(bench.candidates(variants, modes), bench.device, bench.seconds)
        for mode in modes:
            single, *halves = (timings[variant, mode] for variant in variants)
            body.append((str(variants[0]), mode, duration(single), *(spread(half.ratio(single)) for half in halves)))
    return (
        f"The time of `{bench.names[0]}` in float32, and the ratio to it of the other dtypes of x. The state is "
        "float32 in all.\n\n"
    ) + table(("scan", "", "float32", "bfloat16 / float32", "float16 / float32"), body)


def thread_table(bench: Bench) -> str:
    most, modes = torch.get_num_threads(), (FORWARD, BOTH)
    counts = sorted({2**power for power in range(most.bit_length())} | {most})
    first, _, third, _ = bench.stages
    body = []
    for case in bench.chosen(replace(case, batch=batch) for batch in (1, 8) for case in (first, third)):
        candidates = bench.candidates([case], modes)
        timings = time_all(
            {(mode, count): with_threads(count, candidates[case, mode]) for mode in modes for count in counts},
            bench.device,
            bench.seconds,
        )
        for mode in modes:
            single, *more = (timings[mode, count] for count in counts)
            cells = (cell for timing in more for cell in (spread(single.ratio(timing)), number(timing.cores)))
            body.append((str(case), mode, duration(single), *cells))
    columns = (column for count in counts[1:] for column in (f"speed-up with {count}", f"cores busy with {count}"))
    return (
        f"How many times as fast `{bench.names[0]}` is with more threads, and how many cores the process keeps busy "
        "then (CPU time / time).\n\n"
    ) + table(("scan", "", "1 thread", *columns), body)


def memory_table(bench: Bench) -> str:
    cases = (bench.stages[0], *(() if bench.quick else (detection(bench),)))
    body = []
    with child_process() as child:
        for case in cases:  # never tiny ones: memory is counted in pages
            log(f"  {case}")
            found = [
                left_out(name, case, bench.device) or measure_in(child, extra_memory, name, case, bench.device.type)
                for name in bench.names
            ]
            body.append(
                (str(case), *(f"not measured: {one}" if isinstance(one, str) else number(one) for one in found))
            )
    return (
        "The most memory that forward+backward has in use beside its inputs and dy (so y, the gradients, what is kept "
        "for the backward pass and scratch), in multiples of x. y and the gradient of x alone are 2.\n\n"
    ) + table(("scan", *bench.names), body)


def sequence_table(bench: Bench) -> str:
    first = bench.stages[0]
    cases = [
        SequenceCase(first.batch, first.channels, 3136, state, channels_last, first.dtype)
        for state in (1, 16)
        for channels_last in (True, False)
    ]
    return (
        "`selective_scan` of sequences (batch x D x L), with the full step of each channel as an input.\n\n"
    ) + bench.compare(cases)


# Title: what measures and writes it, in the order of the report.
TABLES: dict[str, Callable[[Bench], str]] = {
    "MSVMamba-Tiny at 224": stage_table,
    "Detection at 1280 x 800": detection_table,
    "Linear in the length": length_table,
    "VMamba's four routes": vmamba_table,
    "Dtypes": dtype_table,
    "Threads": thread_table,
    "Memory": memory_table,
    "The 1-D op": sequence_table,
}


def with_threads(count: int, one: Candidate) -> Candidate:
    """Run a candidate on ``count`` threads."""

    @contextlib.contextmanager
    def active() -> Iterator[None]:
        before = torch.get_num_threads()
        torch.set_num_threads(count)
        try:
            with one.active():
                yield
        finally:
            torch.set_num_threads(before)

    return Candidate(one.call, active)


def log(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
