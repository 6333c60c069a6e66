"""Measure the selective scan and write the tables to benchmarks/results/<machine>.md; benchmarks/README.md says more.

Nothing here passes or fails on a time: the tables are for reading. What each has to say stands above it.
"""

import argparse
import contextlib
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Executor
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import torch
from cases import Case, MapCase, SequenceCase, output_gradient
from cells import case_tables, per_pair, ratio, span
from measure import BACKWARD, BOTH, FORWARD, Bench, Row, candidate, measure, results, total
from memory import extra_memory
from peers import Peer, peers

from mmmsv.analysis.speed import machine
from mmmsv.analysis.speed.markdown import number, table
from mmmsv.analysis.speed.memory import child_process
from mmmsv.analysis.speed.timing import Candidate

RESULTS = Path(__file__).parent / "results"
LEGEND = (
    "Written by `make bench`. Times are medians, with the 10th and the 90th percentile in brackets; a time without "
    "them is that of a single call, of more than a second. What stands in one row was measured in turns, round after "
    "round, after a warm-up, so the ratios hold whatever else the machine did. Each call of a backend goes through the "
    "public function, with its checks. A *pair* is one channel of one token on one route. *Forward* runs without "
    "autograd, *backward* on a kept graph, *forward+backward* makes the graph too."
)
# Of MSVMamba-Tiny at 224: side of the full map, channels, rank of the step, blocks.
TINY = ((56, 192, 6, 1), (28, 384, 12, 2), (14, 768, 24, 9), (7, 1536, 48, 2))
HALF = {"routes": ("row_rev", "col", "col_rev"), "carry": True, "merge": False}
FOUR = ("row", "col", "row_rev", "col_rev")


class Plan(NamedTuple):
    """The cases of each table."""

    stages: tuple[MapCase, ...]
    detection: tuple[MapCase, ...]
    lengths: tuple[MapCase, ...]
    vmamba: tuple[MapCase, ...]
    dtypes: tuple[MapCase, ...]
    threads: tuple[MapCase, ...]
    memory: tuple[MapCase, ...]
    sequences: tuple[SequenceCase, ...]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
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

    started = time.monotonic()
    text = report(device, args.quick)
    output.parent.mkdir(parents=True, exist_ok=True)
    output.write_text(text)
    progress(f"{output}, after {time.monotonic() - started:.0f} s")


def report(device: torch.device, quick: bool) -> str:
    """Measure everything; return it as Markdown."""
    facts = machine.facts(device)
    reasons = {peer: peer.why_not(device) for peer in peers(device)}
    bench = Bench(device, [peer for peer, reason in reasons.items() if not reason], 0.03 if quick else 2.0)
    cases = plan(device, quick)
    sections = [
        f"# The selective scan on {machine.name(device)}{' (--quick: tiny sizes, no measurement)' if quick else ''}",
        table(("", ""), facts.items()),
        LEGEND,
        f"## What is compared\n\n{peer_table(reasons)}",
    ]
    for title, make in TABLES.items():
        if device.type == "cpu" or make is not thread_table:
            progress(title)
            sections.append(f"## {title}\n\n{make(bench, cases)}")
    return "\n\n".join(sections) + "\n"


def plan(device: torch.device, quick: bool) -> Plan:
    """Choose sizes that fill the device: one image and float32 on a CPU, batches and bfloat16 on a GPU."""
    gpu = device.type == "cuda"
    dtype = torch.bfloat16 if gpu else torch.float32
    full = [MapCase(128 if gpu else 1, side, side, *sizes, dtype=dtype, times=n) for side, *sizes, n in TINY]
    detection = MapCase(2 if gpu else 1, 200, 320, *TINY[0][1:3], dtype=dtype)
    first, third = full[0], full[2]
    vmamba = {"batch": 8 if gpu else 1, "state": 16, "routes": FOUR}
    sequence = SequenceCase(first.batch, 192, 3136, 1, True, dtype)
    cases = Plan(
        stages=tuple(case for whole in full for case in (whole, half_map(whole))),
        detection=(detection, half_map(detection)),
        lengths=tuple(
            replace(first, batch=16 if gpu else 1, height=side, width=side) for side in (14, 28, 56, 112, 224, 512)
        ),
        vmamba=(replace(first, **vmamba), replace(third, **vmamba)),
        dtypes=tuple(full),
        threads=tuple(replace(case, batch=batch) for batch in (1, 8) for case in (first, third)),
        memory=(first, detection),
        sequences=tuple(
            replace(sequence, state=state, channels_last=layout) for state in (1, 16) for layout in (True, False)
        ),
    )
    if not quick:
        return cases
    # Memory is counted in pages: a tiny case would show none.
    return Plan(*(tuple(case.tiny() for case in group) for group in cases))._replace(memory=cases.memory[:1])


def half_map(whole: MapCase) -> MapCase:
    """Return the scan that MS2D makes beside ``whole``: the other three routes, over the map of half the sides."""
    return replace(whole, height=(whole.height + 1) // 2, width=(whole.width + 1) // 2, **HALF)


def stage_table(bench: Bench, cases: Plan) -> str:
    rows = measure_all(bench, cases.stages)
    blocks = sum(case.times for case in cases.stages) // 2
    rows.append(total(f"all of the network: {blocks} blocks", rows, (case.times for case in cases.stages)))
    return (
        "The scans of MSVMamba-Tiny for images of 224 x 224, stage by stage: one route over the full map, three over "
        f"that of half the sides, carried from one to the next.\n\n{case_tables(bench.names, rows)}"
    )


def detection_table(bench: Bench, cases: Plan) -> str:
    rows = measure_all(bench, cases.detection)
    return f"The scans of stage 1 for an image of 1280 x 800.\n\n{case_tables(bench.names, rows)}"


def vmamba_table(bench: Bench, cases: Plan) -> str:
    rows = measure_all(bench, cases.vmamba)
    return f"Four routes with a parameter set each, summed, and 16 states.\n\n{case_tables(bench.names, rows)}"


def sequence_table(bench: Bench, cases: Plan) -> str:
    rows = measure_all(bench, cases.sequences)
    return (
        "`selective_scan` of sequences (batch x D x L), with the full step of each channel as an input.\n\n"
        f"{case_tables(bench.names, rows)}"
    )


def length_table(bench: Bench, cases: Plan) -> str:
    modes = (FORWARD, BACKWARD)
    timings = bench.interleave(of_the_first(bench, cases.lengths, modes))
    body = [
        (str(case), case.length, *(per_pair(timings[case, mode], case.pairs) for mode in modes))
        for case in cases.lengths
    ]
    spread = []
    for mode in modes:
        costs = [timings[case, mode].median / case.pairs for case in cases.lengths]
        spread.append(f"{100 * (max(costs) / min(costs) - 1):.0f} %")
    return (
        f"Does the cost of a pair grow with the length? `{bench.first.name}`, ns per pair, all maps in turns.\n\n"
    ) + table(("scan", "tokens", *modes), [*body, ("largest / smallest - 1", "", *spread)])


def dtype_table(bench: Bench, cases: Plan) -> str:
    dtypes = (torch.float32, torch.bfloat16, torch.float16)
    body = []
    for case in cases.dtypes:
        variants = [replace(case, dtype=dtype) for dtype in dtypes]
        timings = bench.interleave(of_the_first(bench, variants, (FORWARD, BOTH)))
        for mode in (FORWARD, BOTH):
            single, *halves = (timings[variant, mode] for variant in variants)
            body.append((str(variants[0]), mode, span(single), *(ratio(half, single) for half in halves)))
    return (
        f"The time of `{bench.first.name}` in float32, and the ratio to it of the other dtypes of x. The state is "
        "float32 in all.\n\n"
    ) + table(("scan", "", "float32", "bfloat16 / float32", "float16 / float32"), body)


def thread_table(bench: Bench, cases: Plan) -> str:
    most = torch.get_num_threads()
    counts = sorted({2**power for power in range(most.bit_length())} | {most})
    body = []
    for case in cases.threads:
        alone = of_the_first(bench, [case], (FORWARD, BOTH))
        timings = bench.interleave(
            {(mode, count): with_threads(count, one) for (_, mode), one in alone.items() for count in counts}
        )
        for mode in (FORWARD, BOTH):
            single, *more = (timings[mode, count] for count in counts)
            cells = (cell for timing in more for cell in (ratio(single, timing), number(timing.cores)))
            body.append((str(case), mode, span(single), *cells))
    columns = (column for count in counts[1:] for column in (f"speed-up with {count}", f"cores busy with {count}"))
    return (
        f"How many times as fast `{bench.first.name}` is with more threads, and how many cores the process keeps busy "
        "then (CPU time / time).\n\n"
    ) + table(("scan", "", "1 thread", *columns), body)


def memory_table(bench: Bench, cases: Plan) -> str:
    body = []
    with child_process() as child:
        for case in cases.memory:
            progress(f"  {case}")
            body.append((str(case), *(memory_cell(child, bench, peer, case) for peer in bench.peers)))
    return (
        "The most memory that forward+backward has in use beside its inputs and dy (so y, the gradients, what is kept "
        "for the backward pass and scratch), in multiples of x. y and the gradient of x alone are 2.\n\n"
    ) + table(("scan", *bench.names), body)


# Title: what measures and writes it, in the order of the report.
TABLES: dict[str, Callable[[Bench, Plan], str]] = {
    "MSVMamba-Tiny at 224": stage_table,
    "Detection at 1280 x 800": detection_table,
    "Linear in the length": length_table,
    "VMamba's four routes": vmamba_table,
    "Dtypes": dtype_table,
    "Threads": thread_table,
    "Memory": memory_table,
    "The 1-D op": sequence_table,
}


def measure_all(bench: Bench, cases: Iterable[Case]) -> list[Row]:
    rows = []
    for case in cases:
        progress(f"  {case}")
        rows.append(measure(bench, case))
    return rows


def of_the_first(bench: Bench, cases: Iterable[Case], modes: Sequence[str]) -> dict[tuple[Case, str], Candidate]:
    """Make candidates of the first peer, by case and mode; to be timed in turns."""
    candidates = {}
    for case in cases:
        progress(f"  {case}")
        scan = case.scan(bench.device)
        dy = output_gradient(scan)
        results(bench.first, scan, dy)  # kernels that have to be compiled for it are, before any time is taken
        candidates |= {(case, mode): candidate(bench.first, scan, dy, mode) for mode in modes}
    return candidates


def with_threads(count: int, one: Candidate) -> Candidate:
    """Run a candidate on so many threads."""

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


def memory_cell(child: Executor, bench: Bench, peer: Peer, case: Case) -> str:
    if reason := bench.too_slow(peer, case):
        return reason
    try:
        return number(child.submit(extra_memory, peer.name, case, bench.device.type).result())
    except (OSError, torch.OutOfMemoryError) as error:
        return f"not measured: {error}"


def peer_table(reasons: dict[Peer, str | None]) -> str:
    return table(
        ("name", "what", "runs here"),
        ((peer.name, peer.what, f"no: {reason}" if reason else "yes") for peer, reason in reasons.items()),
    )


def progress(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
