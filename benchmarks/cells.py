"""Numbers and measurements as cells of Markdown tables."""

from collections.abc import Iterable

from measure import BACKWARD, BOTH, COPY, FORWARD, Row

from mmmsv.analysis.speed.markdown import number, spread, table
from mmmsv.analysis.speed.timing import Timing


def span(timing: Timing) -> str:
    """Write a time with its spread."""
    unit, scale = ("µs", 1e6) if timing.median < 1e-3 else ("ms", 1e3) if timing.median < 1 else ("s", 1.0)
    return spread(tuple(scale * seconds for seconds in timing.samples), f" {unit}")


def ratio(timing: Timing, base: Timing) -> str:
    """Write how many times as long as ``base`` something took, with the spread over the rounds."""
    return spread(timing.ratio(base))


def per_pair(timing: Timing, pairs: int) -> str:
    """Write nanoseconds a pair, with their spread."""
    return spread(tuple(1e9 * seconds / pairs for seconds in timing.samples))


def case_tables(names: Iterable[str], rows: list[Row]) -> str:
    """Write the times of the first peer, the ratio of each other one to it, and how far the others are from it."""
    name, *others = names
    parts = [
        f"`{name}`. GB/s count what the forward pass has to move at least: x once for each route (of a sequence u and "
        "delta), and y. The copy is `copy_` of as many bytes.",
        table(
            (
                *("scan", "pairs", FORWARD, "ns a pair", "GB/s", "forward / copy"),
                *(BACKWARD, "ns a pair", "backward / forward", BOTH, "forward+backward / 3 copies"),
            ),
            (_times(name, row) for row in rows),
        ),
        f"How many times as long as `{name}` the others take:",
        table(
            ("scan", "", *others),
            (
                (row.label, mode, *(_times_as_long(name, row, other, mode) for other in others))
                for row in rows
                for mode in (FORWARD, BOTH)
            ),
        ),
        f"How far they are from `{name}`: the largest difference, relative to the largest number, of y and of each "
        "gradient:",
        table(("scan", *others), ((row.label, *(_difference(row, other) for other in others)) for row in rows)),
    ]
    return "\n\n".join(parts)


def _times(name: str, row: Row) -> tuple[object, ...]:
    forward, backward, both = (row.timings[name, mode] for mode in (FORWARD, BACKWARD, BOTH))
    copy = row.timings[COPY, FORWARD]
    copies = Timing(tuple(3 * seconds for seconds in copy.samples), copy.cores)
    return (
        row.label,
        row.pairs,
        span(forward),
        number(1e9 * forward.median / row.pairs),
        number(row.moved / forward.median / 1e9),
        ratio(forward, copy),
        span(backward),
        number(1e9 * backward.median / row.pairs),
        ratio(backward, forward),
        span(both),
        ratio(both, copies),
    )


def _times_as_long(name: str, row: Row, other: str, mode: str) -> str:
    if timing := row.timings.get((other, mode)):
        return ratio(timing, row.timings[name, mode])
    return row.reasons.get(other, "")


def _difference(row: Row, other: str) -> str:
    return f"{row.differences[other]:.1e}" if other in row.differences else row.reasons.get(other, "")
