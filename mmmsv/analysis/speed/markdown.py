"""Write numbers and tables in Markdown."""

from collections.abc import Iterable, Sequence

from .timing import quantile


def table(header: Iterable[str], body: Iterable[Iterable[object]]) -> str:
    """Lay out rows under a header."""
    header = tuple(header)
    lines = [header, ("---",) * len(header), *body]
    return "\n".join(f"| {' | '.join(str(cell) for cell in line)} |" for line in lines)


def number(value: float) -> str:
    """Write three digits, or all before the point."""
    return f"{value:.0f}" if value >= 100 else f"{value:.3g}"


def spread(values: Sequence[float], unit: str = "") -> str:
    """Write the median, and with more than one value the 10th and the 90th percentile."""
    middle = f"{number(quantile(values, 0.5))}{unit}"
    if len(values) == 1:
        return middle
    return f"{middle} ({number(quantile(values, 0.1))}-{number(quantile(values, 0.9))})"
