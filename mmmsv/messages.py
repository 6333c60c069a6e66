"""Words that several messages share."""

from collections.abc import Iterable


def first_of(names: Iterable[object], shown: int = 3) -> str:
    """List the first of some names, and say how many there are if that is not all."""
    names = [str(name) for name in names]
    more = f", ... ({len(names)} in all)" if len(names) > shown else ""
    return ", ".join(names[:shown]) + more
