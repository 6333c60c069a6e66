"""Races: two threads at one address, at least one of them writing, with nothing that puts one before the other.

Within a program a barrier does; between programs of a launch nothing does. So it is no matter of luck whether a race is
found: the accesses of a launch are noted, and looked through at its end.
"""

import itertools
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np

from .ptx import Instruction


class Access(NamedTuple):
    """What one instruction did, once, in all threads that took part.

    Args:
        instruction: The instruction.
        writes: Whether it writes.
        offsets: Of the first byte, for each thread.
        size: Bytes.
        threads: Their numbers in the launch.
        barriers: How many each program of the launch had passed.
    """

    instruction: Instruction
    writes: bool
    offsets: np.ndarray
    size: int
    threads: np.ndarray
    barriers: np.ndarray


@dataclass
class Accesses:
    """Those of a launch to one piece of memory, in their order."""

    noted: list[Access] = field(default_factory=list)

    def race(self, threads_of_program: int) -> str | None:
        """Describe a race; None where there is none."""
        if not any(access.writes for access in self.noted):
            return None
        unit = min(access.size for access in self.noted)
        written = np.unique(np.concatenate([_units(access, unit).ravel() for access in self.noted if access.writes]))
        everything = [_touching(access, unit, written) for access in self.noted]
        numbers = np.repeat(np.arange(len(everything)), [len(units) for units, _ in everything])
        units, threads = (np.concatenate(each) for each in zip(*everything, strict=True))
        programs = threads // threads_of_program
        if (apart := _differs(units, programs)).any():
            return "two programs race: " + self._describe(units == units[apart.argmax()], programs, threads, numbers)
        counts = np.stack([access.barriers for access in self.noted])
        barriers = counts[numbers, programs]
        groups = units * (barriers.max() + 1) + barriers
        if len(groups) and groups.max() > 64 * len(groups):
            groups = np.unique(groups, return_inverse=True)[1]
        # What threads write in one instruction is the same; which of them comes first is no matter.
        writes = np.array([access.writes for access in self.noted])[numbers]
        conditions = (_differs(groups, threads), _differs(groups, numbers), writes)
        racing = np.logical_and.reduce([_has(groups, condition) for condition in conditions])
        if racing.any():
            chosen = groups == groups[racing.argmax()]
            return "two threads race, with no barrier between: " + self._describe(chosen, threads, threads, numbers)
        return None

    def _describe(self, chosen: np.ndarray, owners: np.ndarray, threads: np.ndarray, numbers: np.ndarray) -> str:
        """Name an access that writes and one of another owner, of those chosen."""
        accesses = list(zip(*(each[chosen].tolist() for each in (owners, threads, numbers)), strict=True))
        writing = (access for access in accesses if self.noted[access[2]].writes)
        pairs = ((one, other) for one, other in itertools.product(writing, accesses) if one[0] != other[0])
        # Of two threads, not both in one instruction, if there are such.
        one, other = next((pair for pair in pairs if pair[0][2] != pair[1][2]), (accesses[0], accesses[-1]))
        return " and ".join(f"thread {thread} at {self.noted[n].instruction}" for _, thread, n in (one, other))


def _units(access: Access, unit: int) -> np.ndarray:
    """Return which units each thread touches, ``(threads, units)``."""
    return access.offsets[:, None] // unit + np.arange(access.size // unit)


def _touching(access: Access, unit: int, written: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the places among the written units that are touched, and by which thread."""
    units = _units(access, unit).ravel()
    places = np.minimum(np.searchsorted(written, units), len(written) - 1)
    touched = written[places] == units
    return places[touched], np.repeat(access.threads, access.size // unit)[touched]


def _differs(groups: np.ndarray, values: np.ndarray) -> np.ndarray:
    """Say of each element whether its value is another than that of a certain one of its group."""
    one = np.empty(groups.max(initial=0) + 1, values.dtype)
    one[groups] = values
    return one[groups] != values


def _has(groups: np.ndarray, values: np.ndarray) -> np.ndarray:
    """Say of each element whether any of its group has a value that is true."""
    any_ = np.zeros(groups.max(initial=0) + 1, bool)
    any_[groups[values]] = True
    return any_[groups]
